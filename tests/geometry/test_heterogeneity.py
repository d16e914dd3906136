"""Heterogeneity against its definition, and every bootstrap draw against doing it the long way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.geometry.baseline_scores import FHS_OF, fhs_estimates
from moegeo_cli.geometry.fisher_sums import FEW_TOKENS, FisherSums, grams
from moegeo_cli.geometry.heterogeneity import FORMS, heterogeneity_estimates
from moegeo_cli.geometry.resample import Draws, Estimate, group_sequences, make_draws

GROUPS, EXPERTS, WIDTH = 20, 5, 12
DRAWS = make_draws(group_sequences(GROUPS), count=60)


def fisher_groups(seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group sums (G, E, D), tokens and dispatched tokens of each group."""
    generator = np.random.default_rng(seed)
    sizes_E = np.exp(spread * generator.normal(size=(EXPERTS, 1)))
    groups = generator.gamma(2.0, 1.0, (GROUPS, EXPERTS, WIDTH)) * sizes_E
    tokens = generator.integers(20, 60, GROUPS)
    mass = generator.integers(5, 20, (GROUPS, EXPERTS)).astype(float)
    return groups, tokens, mass


def sums_of(
    groups: np.ndarray,
    tokens: np.ndarray,
    mass: np.ndarray,
    has: np.ndarray | None = None,
    *,
    shown: np.ndarray | None = None,
) -> FisherSums:
    has = np.ones(groups.shape[1], dtype=bool) if has is None else has
    gram, mean_gram = grams(groups if shown is None else shown, has)
    return FisherSums(
        "empirical", "position", groups.sum(0), groups.sum(2), gram, mean_gram, tokens, mass,
        mass.sum(0), has, shown is not None,
    )  # fmt: skip


def slow_forms(
    groups: np.ndarray, tokens: np.ndarray, mass: np.ndarray, has: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
    """One draw: weigh the groups, form every expert's Fisher, and follow the definition."""
    total = sum(c * g for c, g in zip(counts, groups, strict=True))
    count = float(counts @ tokens)
    fishers = [total[e] / count for e in range(len(has)) if has[e]]
    mean = np.mean(fishers, axis=0)
    h = float(np.mean([np.linalg.norm(f - mean) for f in fishers]))
    traces = [f.sum() for f in fishers]
    kept = [e for e in range(len(has)) if has[e] and mass.sum(0)[e] >= FEW_TOKENS]
    own = [total[e].sum() / float(counts @ mass[:, e]) for e in kept]
    return {
        "heterogeneity": h,
        "heterogeneity_relative": h / float(np.linalg.norm(mean)),
        "heterogeneity_trace": float(np.std(traces) / np.mean(traces)),
        "heterogeneity_conditional": float(np.std(own) / np.mean(own)),
    }


@pytest.mark.parametrize("missing", [(), (1,), (0, 4)])
def test_values_and_draws_are_what_the_definition_gives(missing: tuple[int, ...]) -> None:
    groups, tokens, mass = fisher_groups()
    has = np.array([e not in missing for e in range(EXPERTS)])
    groups[:, ~has] = 0
    found = heterogeneity_estimates(sums_of(groups, tokens, mass, has), DRAWS)
    whole = slow_forms(groups, tokens, mass, has, np.ones(GROUPS))
    by_draw = [slow_forms(groups, tokens, mass, has, c) for c in DRAWS.counts_BG]
    for form in FORMS:
        assert found[form].value == pytest.approx(whole[form], rel=1e-10), form
        np.testing.assert_allclose(found[form].draws_B, [d[form] for d in by_draw], rtol=1e-6)
        assert (found[form].reason is not None) == bool(missing)


def test_an_expert_with_few_tokens_is_left_out_of_the_conditional_form_and_counted() -> None:
    groups, tokens, mass = fisher_groups(1)
    mass[:, 2] = 0
    mass[:3, 2] = 5
    found = heterogeneity_estimates(sums_of(groups, tokens, mass), DRAWS)
    has = np.ones(EXPERTS, dtype=bool)
    expected = slow_forms(groups, tokens, mass, has, np.ones(GROUPS))
    assert found["heterogeneity_conditional"].value == pytest.approx(
        expected["heterogeneity_conditional"]
    )
    assert found["low_sample_experts"].value == 1
    assert "1 of 5 experts under 30 tokens" in (found["heterogeneity_conditional"].reason or "")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-12, 1e6))
def test_the_forms_are_invariant_under_what_they_say(seed: int, scale: float) -> None:
    groups, tokens, mass = fisher_groups(seed)
    order = np.random.default_rng(seed).permutation(EXPERTS)
    one = heterogeneity_estimates(sums_of(groups, tokens, mass), DRAWS)
    permuted = heterogeneity_estimates(
        sums_of(groups[:, order], tokens, mass[:, order]), DRAWS
    )  # fmt: skip
    scaled = heterogeneity_estimates(sums_of(groups * scale, tokens, mass), DRAWS)
    for form in FORMS:
        assert permuted[form].value == pytest.approx(one[form].value, rel=1e-9)
        factor = scale if form == "heterogeneity" else 1.0
        assert scaled[form].value == pytest.approx(factor * (one[form].value or 0), rel=1e-9)


def test_the_trace_form_does_not_depend_on_the_basis() -> None:
    """Full Fishers in two bases: their diagonals differ, their traces do not."""
    generator = np.random.default_rng(2)
    rotation = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0]
    fulls = [np.diag(v) for v in generator.gamma(0.3, 1.0, (EXPERTS, WIDTH))]

    def forms(matrices: list[np.ndarray]) -> dict[str, float | None]:
        total = np.array([np.diag(m) for m in matrices])
        sums = FisherSums.without_groups("adam", "step", total)
        return {n: e.value for n, e in heterogeneity_estimates(sums, DRAWS).items()}

    here, there = forms(fulls), forms([rotation @ m @ rotation.T for m in fulls])
    assert there["heterogeneity_trace"] == pytest.approx(here["heterogeneity_trace"])
    assert there["heterogeneity"] != pytest.approx(here["heterogeneity"], rel=0.05)


def test_a_projection_keeps_the_values_exact_and_the_intervals_near() -> None:
    generator = np.random.default_rng(3)
    groups = generator.gamma(2.0, 1.0, (GROUPS, EXPERTS, 600))
    groups *= np.exp(generator.normal(size=(1, EXPERTS, 600)))
    _, tokens, mass = fisher_groups(3)
    projection = generator.normal(size=(600, 256)) / 16
    exact = heterogeneity_estimates(sums_of(groups, tokens, mass), DRAWS)
    rough = heterogeneity_estimates(sums_of(groups, tokens, mass, shown=groups @ projection), DRAWS)
    for form in FORMS:
        assert rough[form].value == exact[form].value
        a, b = rough[form].draws_B, exact[form].draws_B
        assert a is not None
        assert b is not None
        assert np.abs(a / b - 1).max() < 0.05


def test_sums_survive_being_saved() -> None:
    groups, tokens, mass = fisher_groups(4)
    sums = sums_of(groups * 1e-30, tokens, mass)  # squares of small gradients
    again = FisherSums.from_arrays("empirical", "position", sums.to_arrays())
    one, other = heterogeneity_estimates(sums, DRAWS), heterogeneity_estimates(again, DRAWS)
    for form in FORMS:
        assert other[form].value == one[form].value
        np.testing.assert_allclose(other[form].draws_B, one[form].draws_B, rtol=1e-4)


def test_the_null_is_what_noise_alone_gives() -> None:
    """Experts with one Fisher: what is measured does not stand above its null; others do."""
    generator = np.random.default_rng(5)
    same = generator.gamma(0.2, 1.0, (GROUPS, EXPERTS, WIDTH))
    tokens, mass = np.full(GROUPS, 40), np.full((GROUPS, EXPERTS), 15.0)
    draws = make_draws(group_sequences(GROUPS), count=400)
    noise = heterogeneity_estimates(sums_of(same, tokens, mass), draws)["heterogeneity"]
    planted = same * np.array([1, 4, 1, 9, 1])[:, None]
    real = heterogeneity_estimates(sums_of(planted, tokens, mass), draws)["heterogeneity"]
    assert noise.null_B is not None
    assert real.null_B is not None
    assert noise.value == pytest.approx(float(noise.null_B.mean()), rel=0.35)
    assert (real.value or 0) > float(np.quantile(real.null_B, 0.99))


def test_fhs_is_the_ratio_draw_by_draw() -> None:
    now, base = (
        heterogeneity_estimates(sums_of(*fisher_groups(seed)), DRAWS) for seed in (6, 7)
    )  # fmt: skip
    (score,) = fhs_estimates([now], [[base]], DRAWS)
    for name, form in FHS_OF.items():
        top, bottom = now[form], base[form]
        assert score[name].value == pytest.approx((top.value or 0) / (bottom.value or 1))
        np.testing.assert_allclose(score[name].draws_B, top.draws_B / bottom.draws_B)


def test_several_baselines_use_the_geometric_mean_and_widen_the_interval() -> None:
    def single(value: float) -> list[dict[str, Estimate]]:
        rows = {form: Estimate(value, np.full(len(DRAWS.counts_BG), value)) for form in FORMS}
        return [rows]

    bases = [single(v) for v in (1.0, 2.0, 4.0, 2.0, 1.0, 4.0, 2.0, 2.0)]
    draws = make_draws(group_sequences(GROUPS), count=4000)
    bases = [
        [{f: Estimate(e.value, np.full(4000, e.value)) for f, e in r.items()} for r in base]
        for base in bases
    ]
    now = [{form: Estimate(2.0, np.full(4000, 2.0)) for form in FORMS}]
    (score,) = fhs_estimates(now, bases, draws)
    assert score["fhs"].value == pytest.approx(1.0)
    logs = np.log([1, 2, 4, 2, 1, 4, 2, 2])
    # the spread of one fresh seed around the mean of eight: t with 7 degrees of freedom
    expected = np.std(logs, ddof=1) * np.sqrt(1 + 1 / 8) * np.sqrt(7 / 5)
    spread = score["fhs"].draws_B
    assert spread is not None
    assert np.log(spread).std() == pytest.approx(expected, rel=0.1)


def test_a_baseline_that_is_zero_or_noise_gives_no_score() -> None:
    now = heterogeneity_estimates(sums_of(*fisher_groups(6)), DRAWS)
    zero = {form: Estimate(0.0) for form in FORMS}
    noise = {form: Estimate(1.0, null_B=np.full(60, 2.0)) for form in FORMS}
    for base, words in ((zero, "is zero"), (noise, "above its sampling noise")):
        (score,) = fhs_estimates([now], [[base]], DRAWS)
        assert score["fhs"].value is None
        assert words in (score["fhs"].reason or "")


def test_an_expert_without_fisher_is_unknown_and_not_zero() -> None:
    groups, tokens, mass = fisher_groups(8)
    has = np.array([True, False, True, True, True])
    groups[:, 1] = 0
    sums = sums_of(groups, tokens, mass, has)
    assert np.isnan(sums.trace_E[1])
    assert np.isfinite(sums.trace_E[[0, 2, 3, 4]]).all()
    none = sums_of(groups, tokens, mass, np.zeros(EXPERTS, dtype=bool))
    found = heterogeneity_estimates(none, DRAWS)
    assert all(e.value is None and e.reason for e in found.values())


def test_without_groups_there_is_no_interval() -> None:
    groups, tokens, mass = fisher_groups(9)
    empty = Draws(np.zeros(1, dtype=np.int64), np.zeros((0, 1)))
    found = heterogeneity_estimates(sums_of(groups, tokens, mass), empty)
    assert found["heterogeneity"].value is not None
    assert found["heterogeneity"].draws_B is None
