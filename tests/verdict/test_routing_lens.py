"""What `moegeo routing` measured, judged from records alone."""

from __future__ import annotations

from typing import Any

import pytest

from moegeo_cli.commands.routing.record import RoutingLayerRecord, RoutingRecord
from moegeo_cli.records import Coverage, Metric
from moegeo_cli.verdict import judge, load_thresholds, recommend
from moegeo_cli.verdict.lenses import judge_lens
from tests.verdict.conftest import checkpoint, metric, run_of

FINE = {"response_relative": 0.4, "constant_share": 0.05, "overlap_unrelated": 0.27}


def layer(index: int, *, even: float | None = 0.25, **changes: Any) -> RoutingLayerRecord:
    """A healthy router; a metric's changed value may be a whole metric, or None."""
    metrics: dict[str, Metric] = {}
    for name, value in {**FINE, **changes}.items():
        null = {"null_value": even} if name == "overlap_unrelated" else {}
        metrics[name] = value if isinstance(value, Metric) else metric(value, **null)
    return RoutingLayerRecord(index, f"model.layers.{index}.mlp.gate", 8, 2, "softmax", metrics)


def record_of(*layers: RoutingLayerRecord, found: int | None = None) -> RoutingRecord:
    coverage = Coverage(len(layers) if found is None else found, len(layers))
    return RoutingRecord(
        status="complete", versions={}, name="checkpoint-9", checkpoint="checkpoint-9", step=9,
        model_type="qwen3_moe", probe={}, settings={}, coverage=coverage, metrics={},
        layers=layers, fingerprint="f" * 64,
    )  # fmt: skip


def judged(record: RoutingRecord, framework: str | None = None, **limits: Any) -> RoutingRecord:
    own = load_thresholds({name.replace("_", "-"): value for name, value in limits.items()})
    return judge_lens("routing", record, own, run_of(), framework)


def test_a_healthy_router_passes_both() -> None:
    record = judged(record_of(layer(0), layer(1)))
    assert (record.findings, record.interventions) == ((), ())
    assert [(c.id, c.outcome) for c in record.checks] == [("MG701", "passed"), ("MG702", "passed")]


def test_a_shared_direction_says_where_how_much_and_what_to_do() -> None:
    rows = (layer(0), layer(1, response_relative=2.0, constant_share=0.6),
            layer(2, response_relative=3.0, constant_share=0.8))  # fmt: skip
    record = judged(record_of(*rows), "transformers")
    (finding,) = record.findings
    assert (finding.id, finding.name, finding.severity) == ("MG701", "shared-direction", "info")
    assert (finding.layers, finding.steps) == ((1, 2), (9,))
    assert "in layer 2, 80% of the logits' energy is the same for every token" in finding.message
    assert "3.00 times as strongly as to a random one" in finding.message
    assert "by `moegeo routing`" in finding.message
    assert finding.threshold is not None
    assert finding.threshold.source.startswith("uncalibrated")
    assert [(e.name, e.layer) for e in finding.evidence] == [
        ("constant_share", 1), ("response_relative", 1),
        ("constant_share", 2), ("response_relative", 2),
    ]  # fmt: skip
    advised = {i.id: i for i in record.interventions}
    assert "raise-balance-loss" in advised
    assert advised["remove-shared-direction"].evidence["grade"] == "untested"


@pytest.mark.parametrize(
    ("gain", "share", "found"),
    [
        (metric(1.02, 0.02), metric(0.6), True),
        (metric(1.005, 0.02), metric(0.6), False),  # no more than a random direction
        (metric(3.0), metric(0.505, 0.02), False),  # the interval reaches half
        (metric(0.7), metric(0.9), False),  # suppressed, though nothing else is there
        (metric(None), metric(0.9), False),
    ],
)
def test_both_intervals_must_lie_above(gain: Metric, share: Metric, found: bool) -> None:
    row = layer(0, response_relative=gain, constant_share=share)
    assert bool(judged(record_of(row)).findings) is found


@pytest.mark.parametrize(
    ("overlap", "even", "outcome"),
    [
        (0.90, 0.25, "found"),  # (0.89 − 0.25) / 0.75 = 0.853
        (0.85, 0.25, "passed"),  # (0.84 − 0.25) / 0.75 = 0.787
        (0.90, 0.75, "passed"),  # six of eight experts: 0.75 is nothing
        (1.00, 1.0, "skipped"),  # every token uses every expert: there is no choice
        (0.90, None, "skipped"),
        (None, 0.25, "skipped"),
    ],
)
def test_ignoring_the_input_counts_from_even_use(
    overlap: float | None, even: float | None, outcome: str
) -> None:
    record = judged(record_of(layer(0, overlap_unrelated=overlap, even=even)))
    assert {c.name: c.outcome for c in record.checks}["routing-ignores-input"] == outcome
    for finding in record.findings:
        assert (finding.id, finding.severity) == ("MG702", "info")
        assert "whatever the input: in layer 0, unrelated tokens have 90%" in finding.message


def test_what_was_measured_in_part_cannot_pass() -> None:
    hashed = layer(1, response_relative=None, constant_share=None)
    checks = judged(record_of(layer(0), hashed)).checks
    assert {c.name: c.outcome for c in checks} == {
        "shared-direction": "skipped", "routing-ignores-input": "passed"
    }  # fmt: skip
    assert checks[0].reason == "1 of 2 routers were measured for a shared direction"
    checks = judged(record_of(layer(0), found=3)).checks
    assert [c.outcome for c in checks] == ["skipped", "skipped"]
    found = judged(record_of(layer(0, overlap_unrelated=0.95), found=3))
    assert [f.name for f in found.findings] == ["routing-ignores-input"]


def test_limits_of_ones_own() -> None:
    row = layer(0, response_relative=2.0, constant_share=0.3)
    assert judged(record_of(row)).findings == ()
    (finding,) = judged(record_of(row), shared_direction_share=0.2).findings
    assert finding.severity == "watch"
    assert finding.threshold is not None
    assert finding.threshold.source == "set by the user"
    assert judged(record_of(row), shared_direction_share=0.2, shared_direction=2.5).findings == ()
    row = layer(0, overlap_unrelated=0.5)
    assert [f.id for f in judged(record_of(row), routing_ignores_input=0.3).findings] == ["MG702"]


def test_the_verdict_of_the_run_hears_of_it() -> None:
    run = run_of(checkpoint(9))
    row = layer(1, overlap_unrelated=0.95)
    told = judge(run, lenses={run.checkpoints[0].path: {"routing": record_of(row)}})
    assert told.verdict is not None
    assert (told.verdict.status, told.verdict.routing) == ("healthy", "healthy")
    assert [f.name for f in told.verdict.findings] == ["routing-ignores-input"]
    assert {"activate-balance-loss", "raise-balance-loss"} & {
        i.id for i in recommend(told, told.verdict.findings, facts=True)
    }
