"""What `moegeo experts` measured, judged: by the command itself and with the run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moegeo_cli.commands.experts.record import ExpertLayerRecord, ExpertRecord, ExpertsRecord
from moegeo_cli.explanations.findings import definitions
from moegeo_cli.records import Coverage, Metric, RunRecord
from moegeo_cli.registry import lenses as known_lenses
from moegeo_cli.verdict import judge, load_thresholds, recommend
from moegeo_cli.verdict.lenses import judge_lens, lens_rules
from tests.verdict.conftest import checkpoint, metric, run_of


def expert(place: int, nearest: int | None, alignment: float | None, **more: Any) -> ExpertRecord:
    own = None if alignment is None else metric(alignment, **more)
    return ExpertRecord(place, 100, nearest=nearest, nearest_alignment=own)


def layer(index: int, *experts: ExpertRecord, limit: float | None = 0.1) -> ExpertLayerRecord:
    return ExpertLayerRecord(
        index, f"model.layers.{index}.mlp.gate", len(experts), 2, "closed form", 0, 8, {}, {},
        experts, null_limit=limit,
    )  # fmt: skip


DIFFERENT = (expert(0, 1, 0.2), expert(1, 0, 0.2), expert(2, 0, 0.1), expert(3, 0, 0.05))
ALIKE = (expert(0, 3, 0.99), expert(1, 2, 0.3), expert(2, 1, 0.3), expert(3, 0, 0.99))


def experts_of(*layers: ExpertLayerRecord, found: int | None = None) -> ExpertsRecord:
    coverage = Coverage(len(layers) if found is None else found, len(layers))
    return ExpertsRecord(
        "complete", {}, "checkpoint-9", "checkpoint-9", 9, "qwen3_moe", {}, {}, coverage,
        metric(2.0), layers, fingerprint="f" * 64,
    )  # fmt: skip


def judged(record: ExpertsRecord, **limits: Any) -> ExpertsRecord:
    own = load_thresholds({name.replace("_", "-"): value for name, value in limits.items()})
    return judge_lens("experts", record, own, run_of(), None)


def test_two_that_do_the_same_are_found_with_advice_that_says_how_well_it_is_known() -> None:
    record = judged(experts_of(layer(0, *DIFFERENT), layer(1, *ALIKE)))
    (finding,) = record.findings
    assert (finding.id, finding.name, finding.severity) == ("MG601", "redundant-experts", "info")
    assert finding.layers == (1,)
    assert finding.steps == (9,)
    assert "2 of 8 experts" in finding.message
    assert "layer 1: 0 + 3 (0.990)" in finding.message
    assert "by `moegeo experts`" in finding.message
    (number,) = finding.evidence  # the pair once, not from both sides
    assert (number.name, number.metric.value, number.layer) == ("nearest_alignment", 0.99, 1)
    assert [c.outcome for c in record.checks] == ["found"]
    assert [i.id for i in record.interventions] == [
        "merge-redundant-experts", "separate-redundant-experts",
    ]  # fmt: skip
    assert {i.evidence["grade"] for i in record.interventions} == {"literature"}
    assert all(i.layers == (1,) for i in record.interventions)


def test_a_healthy_layer_passes() -> None:
    record = judged(experts_of(layer(0, *DIFFERENT)))
    assert (record.findings, record.interventions) == ((), ())
    assert [c.outcome for c in record.checks] == ["passed"]


@pytest.mark.parametrize(
    ("pair", "limit", "found"),
    [
        ((0.96, 0.01), 0.1, True),
        ((0.96, 0.03), 0.1, False),  # the interval reaches below 0.95
        ((0.99, 0.01), 0.995, False),  # independent experts of this layer reach as much
    ],
)
def test_a_pair_counts_where_its_interval_is_above_the_limit_and_the_null(
    pair: tuple[float, float], limit: float, found: bool
) -> None:
    twins = (expert(0, 1, pair[0], width=pair[1]), expert(1, 0, pair[0], width=pair[1]))
    assert bool(judged(experts_of(layer(0, *twins, limit=limit))).findings) is found


def test_a_limit_of_ones_own_is_judged_by_without_measuring_again() -> None:
    record = experts_of(layer(0, *DIFFERENT))
    (finding,) = judged(record, redundant_experts=0.15).findings
    assert finding.severity == "watch", "a limit of one's own; none makes alike experts failing"
    assert finding.threshold is not None
    assert finding.threshold.source == "set by the user"


def test_what_was_measured_in_part_cannot_pass() -> None:
    some = experts_of(layer(0, *DIFFERENT), found=3)
    attention = experts_of(layer(0, *DIFFERENT), layer(1, *DIFFERENT, limit=None))
    for record in (some, attention):
        (check,) = judged(record).checks
        assert check.outcome == "skipped"
        assert "1 of" in (check.reason or "")
    older = experts_of(layer(0, ExpertRecord(0, 5), ExpertRecord(1, 5), limit=None))
    assert [c.outcome for c in judged(older).checks] == ["skipped"]
    seen = experts_of(layer(0, *ALIKE), found=3)
    assert judged(seen).findings, "what is there is found all the same"


def with_lens(run: RunRecord, *records: ExpertsRecord | str) -> RunRecord:
    paths = [c.path for c in run.checkpoints]
    lenses = {p: {"experts": r} for p, r in zip(paths, records, strict=True)}
    return judge(run, lenses=lenses)


def test_a_lens_finding_joins_the_verdict_as_a_fact() -> None:
    run = with_lens(run_of(), experts_of(layer(1, *ALIKE)))
    assert run.verdict is not None
    assert (run.verdict.status, run.verdict.routing) == ("healthy", "healthy")
    assert [f.name for f in run.verdict.findings] == ["redundant-experts"]
    assert recommend(run, run.verdict.findings) == (), "a fact calls for nothing by itself"
    found = recommend(run, run.verdict.findings, facts=True)
    assert [i.id for i in found] == ["merge-redundant-experts", "separate-redundant-experts"]


def test_without_the_command_its_rules_are_skipped_and_the_status_is_as_it_was() -> None:
    alone, told = judge(run_of()), with_lens(run_of(), "`moegeo experts` was not run")
    for run in (alone, told):
        assert run.verdict is not None
        assert run.verdict.status == "healthy"
        own = {c.name: c for c in run.verdict.checks if c.name in lens_rules()}
        lenses = known_lenses() if run is alone else ("experts",)
        assert set(own) == {n for n in lens_rules() if definitions()[n].lens in lenses}
        assert all(c.outcome == "skipped" for c in own.values())
        for name, check in own.items():
            assert f"`moegeo {definitions()[name].lens}`" in (check.reason or "")


def test_what_nobody_looked_at_again_is_not_resolved() -> None:
    run = run_of(checkpoint(9), checkpoint(18))
    twins, fine = experts_of(layer(1, *ALIKE)), experts_of(layer(1, *DIFFERENT))
    cured, unknown = with_lens(run, twins, fine), with_lens(run, twins, "was not run")
    assert cured.verdict is not None
    assert [(f.state, f.steps) for f in cured.verdict.findings] == [("resolved", (9,))]
    assert unknown.verdict is not None
    assert unknown.verdict.findings == ()


def test_every_rule_names_a_lens_that_there_is() -> None:
    for name in lens_rules():
        assert definitions()[name].lens in known_lenses()
    of_lenses = {n for n, d in definitions().items() if d.lens not in (None, "check")}
    assert of_lenses == set(lens_rules())


def test_a_metric_without_a_value_finds_nothing() -> None:
    empty = dataclasses.replace(ALIKE[0], nearest_alignment=Metric(None, reason="no token"))
    assert judged(experts_of(layer(0, empty, empty))).findings == ()
