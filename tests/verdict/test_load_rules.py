"""Loads: what deployed models show, and what is worse than that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moegeo_cli.records import CheckpointRecord, LayerRecord, Metric, RunRecord
from moegeo_cli.verdict import load_thresholds
from moegeo_cli.verdict.known_loads import (
    MIXTURE,
    NARROW,
    effective_experts,
    even_experts,
    known_models,
    limit_of,
    reach_of,
    read_load,
    standing,
)
from tests.verdict.conftest import checkpoint, find, layer, metric, run_of, verdict_of


def unequal(effective: float) -> LayerRecord:
    return layer(1, effective_experts=metric(effective, 0.1), collapse=0.6)


def severity(run: RunRecord) -> str | None:
    found = find(run, "router-collapse")
    return None if found is None else found.severity


def test_effective_experts_run_from_the_chosen_to_all() -> None:
    assert effective_experts([1.0] * 8) == pytest.approx(8.0)
    assert effective_experts([5, 5, 0, 0]) == pytest.approx(2.0)
    assert reach_of(8.0, 8.0, 8, 2) == pytest.approx(1.0)
    assert reach_of(2.0, 8.0, 8, 2) == pytest.approx(0.0)
    assert reach_of(8.0, 8.0, 8, 8) is None
    assert reach_of(4.0, 4.0, 8, 2) is None, (
        "even routing would lose most of the way on this sample"
    )


def test_a_sample_of_even_routing_is_as_unequal_as_its_formula_says() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    for experts, slots in ((64, 2000), (8, 200)):
        drawn = generator.multinomial(slots, np.full(experts, 1 / experts), size=400)
        seen = float(np.mean([effective_experts(row.tolist()) for row in drawn]))
        assert even_experts(experts, slots, 1.0) == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("breadth", [MIXTURE, NARROW])
def test_no_known_good_layer_is_worse_than_info(breadth: str) -> None:
    models = [m for m in known_models() if m.breadth == breadth]
    assert len(models) >= 5
    for model in models:
        effective = model.top_k + model.quantiles[0] * (model.experts - model.top_k)
        reading = read_load(effective, model.experts, model.experts, model.top_k, breadth)
        assert reading.severity == "info"
    assert limit_of(breadth) < min(m.quantiles[0] for m in models)


def test_a_standing_is_the_mean_share_of_more_even_layers() -> None:
    assert standing(-0.1, MIXTURE).more_even == 1.0
    assert standing(1.1, MIXTURE).more_even == 0.0
    middle = standing(0.5, MIXTURE)
    slow = [sum(q > 0.5 for q in m.quantiles) / len(m.quantiles)
            for m in known_models() if m.breadth == MIXTURE]  # fmt: skip
    assert middle.more_even == pytest.approx(sum(slow) / len(slow), abs=0.05)


@pytest.mark.parametrize(
    ("effective", "expected"),
    [(2.05, "failing"), (2.5, "watch"), (3.4, "watch"), (3.7, "info"), (6.0, "info")],
)
def test_severity_of_eight_experts_of_which_two_are_chosen(effective: float, expected: str) -> None:
    found = find(run_of(checkpoint(100, layer(0), unequal(effective))), "router-collapse")
    assert found is not None
    assert (found.severity, found.layers) == (expected, (1,))
    assert f"{effective:.1f} of 8 experts carry the load in layer 1" in found.message
    assert "deployed models on mixed text" in found.message


def test_one_kind_of_text_is_a_watch_at_most() -> None:
    narrow = {"domains": {"code": 64}}
    found = find(run_of(checkpoint(100, unequal(2.05)), probe=narrow), "router-collapse")
    assert found is not None
    assert found.severity == "watch"
    assert "text of one kind" in found.message
    assert find(
        run_of(checkpoint(100, unequal(3.4)), probe=narrow), "router-collapse"
    ).severity == (  # type: ignore[union-attr]
        "info"
    )


def test_the_start_of_training_and_a_single_checkpoint_are_facts() -> None:
    early = find(run_of(checkpoint(100, unequal(2.05), fraction=0.2)), "router-collapse")
    assert early is not None
    assert early.severity == "info"
    assert "this early in training" in early.message
    once = run_of(checkpoint(300, layer(1)), checkpoint(400, unequal(2.05), fraction=0.4))
    assert severity(once) == "info"
    twice = run_of(checkpoint(300, unequal(2.05)), checkpoint(400, unequal(2.05), fraction=0.4))
    assert severity(twice) == "failing"


def test_an_interval_that_reaches_over_the_limit_is_no_watch() -> None:
    wide = layer(1, effective_experts=metric(3.0, 2.0), collapse=0.6)
    assert severity(run_of(checkpoint(100, wide))) == "info"


def test_few_tokens_and_few_sequences_cannot_tell() -> None:
    few = Metric(3.0, 2.8, 3.2, 64, null_value=4.0)
    run = run_of(checkpoint(100, layer(1, effective_experts=few, collapse=0.1)))
    assert find(run, "router-collapse") is None
    assert verdict_of(run).routing == "inconclusive"
    assert verdict_of(run_of(checkpoint(100, unequal(2.05)), sequences=7)).routing == "inconclusive"


def test_a_limit_of_the_user_decides_by_itself() -> None:
    run = run_of(checkpoint(9, layer(0, collapse=0.4)))
    assert find(run, "router-collapse") is None
    found = find(run, "router-collapse", thresholds=load_thresholds({"router-collapse": 0.3}))
    assert found is not None
    assert found.severity == "failing"
    assert found.threshold is not None
    assert found.threshold.source == "set by the user"


def test_dead_experts_are_counted_and_watched_where_they_last() -> None:
    once = run_of(checkpoint(100, layer(0, dead=(3, 5), dead_in_all_domains=()), layer(1)))
    found = find(once, "dead-experts")
    assert found is not None
    assert found.severity == "info"
    assert "2 of 16 experts are unused on this probe; 0 of them in every domain" in found.message
    before = checkpoint(100, layer(0, dead=(3, 5), dead_in_all_domains=(3, 5)))
    now = checkpoint(200, layer(0, dead=(3, 6), dead_in_all_domains=(3, 6)), layer(1))
    lasting = find(run_of(before, now), "dead-experts")
    assert lasting is not None
    assert lasting.severity == "watch"
    assert "(layer 0: 3)" in lasting.message
    narrow = find(run_of(before, now, probe={"domains": {"code": 64}}), "dead-experts")
    assert narrow is not None
    assert narrow.severity == "info"


def test_near_ties_are_held_against_what_e_and_k_make_of_normal_logits() -> None:
    ordinary = Metric(0.12, 0.115, 0.125, 64, null_value=0.086)
    assert find(run_of(checkpoint(9, layer(0, near_ties=ordinary))), "near-ties") is None
    many = Metric(0.3, 0.29, 0.31, 64, null_value=0.086)
    found = find(
        run_of(checkpoint(9, layer(0, near_ties=many, near_ties_centred=0.05))), "near-ties"
    )
    assert found is not None
    assert found.severity == "info"
    assert "it would be 8.6%" in found.message
    assert "Without each token's mean logit it is 5.0%" in found.message
    own = load_thresholds({"near-ties": 0.1})
    watched = find(run_of(checkpoint(9, layer(0, near_ties=ordinary))), "near-ties", thresholds=own)
    assert watched is not None
    assert watched.severity == "watch"


def test_a_reading_is_monotone_in_the_load() -> None:
    order = {None: -1, "info": 0, "watch": 1, "failing": 2}
    for experts, top_k in ((8, 2), (64, 8), (256, 8)):
        seen = [
            order[
                read_load(top_k + r * (experts - top_k), experts, experts, top_k, MIXTURE).severity
            ]
            for r in (0.0, 0.1, 0.2, 0.3, 0.6, 1.0)
        ]
        assert seen == sorted(seen, reverse=True)
        assert seen[0] == 2
        assert seen[-1] == 0
    assert math.isclose(limit_of(MIXTURE), 0.256, abs_tol=1e-9)


def test_experts_that_look_dead_are_neither_denied_nor_resolved() -> None:
    def seen(step: int, dead: tuple[int, ...]) -> CheckpointRecord:
        first = replace(layer(0, dead=dead), load=(0.001, 0.002, *[0.997 / 6] * 6))
        return checkpoint(step, first, layer(1))

    proven = run_of(seen(100, (0, 1)))
    assert find(proven, "dead-experts") is not None
    judged = verdict_of(run_of(seen(100, (0, 1)), seen(200, ())))
    [check] = [c for c in judged.checks if c.name == "dead-experts"]
    assert check.outcome == "skipped"
    assert check.reason == "2 of 16 experts look unused; the probe has too few tokens to tell"
    assert "dead-experts" not in {f.name for f in judged.findings}
    used = replace(seen(200, ()), layers=(layer(0), layer(1)))
    over = verdict_of(run_of(seen(100, (0, 1)), used))
    assert {f.state for f in over.findings if f.name == "dead-experts"} == {"resolved"}


def test_the_file_that_sets_a_limit_is_named() -> None:
    own = {"router-collapse": {"value": 0.9, "source": "set by the user in moegeo.toml"}}
    told = verdict_of(run_of(checkpoint(9, layer(0))), thresholds=load_thresholds(own)).reasons
    assert "limit set by you in moegeo.toml: router-collapse = 0.9" in told
    other = {"router-collapse": {"value": 0.9, "source": "our study"}}
    told = verdict_of(run_of(checkpoint(9, layer(0))), thresholds=load_thresholds(other)).reasons
    assert "limit set by you: router-collapse = 0.9" in told
