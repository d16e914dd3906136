"""Sums that are fed batch by batch, against all tokens at once and against a slow reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.fisher.categorical import categorical_information
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.geometry.routing import measure_routing, sum_tokens
from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.geometry.selection import SelectionRule
from moegeo_cli.geometry.simplex import distance, distance_max
from moegeo_cli.geometry.sums import TOKEN_MEANS, RouterTokens
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.measuring.routing_statistic import ADDED, RoutingStatistic
from moegeo_cli.probes import Probe, Sequence
from moegeo_cli.scorings import find_scoring
from moegeo_cli.settings import Settings
from tests.tiny_models import build_tiny

LENGTHS = (7, 31, 18, 44)
BATCHES = ((2, 0), (3,), (1,))  # sequences in another order than the probe's


def tokens_of(
    scoring: str,
    top_k: int | None,
    groups: tuple[int, int] | None,
    bias_on: str | None = None,
    step: float = 0.0,
) -> RouterTokens:
    """Random tokens: an empty slot, a token that is not finite, a biased choice among groups.

    One token names an expert twice, and one has chosen the wrong experts. `step` rounds the
    logits, so that they tie.
    """
    generator = np.random.default_rng(3)
    logits_TE = generator.normal(size=(sum(LENGTHS), 8)).astype(np.float32)
    if step:
        logits_TE = np.round(logits_TE / step) * np.float32(step)
    logits_TE[11, 3] = np.nan
    bias_E = generator.normal(size=8) if groups or bias_on else None
    rule = SelectionRule(3, scoring, bias_E, groups, bias_on=bias_on or "scores")
    scores_TE = rule.score(np.nan_to_num(logits_TE))
    if groups:
        scores_TE = np.nan_to_num(logits_TE)
    selected_TK = np.argsort(-scores_TE, axis=1, kind="stable")[:, :3].astype(np.int32)
    selected_TK[20, 2] = -1
    selected_TK[60, 2] = selected_TK[60, 1]
    selected_TK[70] = np.argsort(scores_TE[70])[:3]
    weights_TK = generator.random(selected_TK.shape).astype(np.float32)
    return RouterTokens(
        logits_TE=logits_TE,
        selected_TK=selected_TK,
        weights_TK=weights_TK,
        sequence_T=np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        scoring=scoring,
        selection_bias_E=bias_E,
        bias_on=bias_on or "scores",
        groups=groups,
        top_k=top_k,
        experts=8,
    )


@pytest.mark.parametrize(
    ("scoring", "top_k", "groups", "bias_on", "step"),
    [
        ("softmax", 3, None, None, 0.0),
        ("softmax", None, None, None, 0.0),
        ("softmax", 3, None, "logits", 0.0),
        ("softmax", 3, None, "scores", 0.0),
        ("softmax", 3, None, None, 0.5),
        ("softmax", 3, None, None, 1e-3),
        ("sigmoid", 3, (4, 2), None, 0.0),
        ("sigmoid", 3, None, "scores", 0.0),
        ("sqrt_softplus", 3, None, "scores", 0.25),
        ("sqrt_softplus", 3, None, None, 0.0),
    ],
)
def test_batches_give_the_sums_of_all_tokens(
    scoring: str,
    top_k: int | None,
    groups: tuple[int, int] | None,
    bias_on: str | None,
    step: float,
) -> None:
    tokens = tokens_of(scoring, top_k, groups, bias_on, step)
    whole = sum_tokens(tokens)
    statistic = RoutingStatistic(dataclasses.replace(tokens, logits_TE=None), len(LENGTHS))
    for members in BATCHES:
        rows = np.concatenate([np.flatnonzero(tokens.sequence_T == s) for s in members])
        assert tokens.logits_TE is not None
        stops = np.cumsum([LENGTHS[s] for s in members]).tolist()
        statistic.add(
            list(zip(members, [0, *stops[:-1]], stops, strict=True)),
            *(torch.from_numpy(a[rows])
              for a in (tokens.logits_TE, tokens.selected_TK, tokens.weights_TK)),
        )  # fmt: skip
    found = statistic.finish()
    for name in ADDED:
        one, other = getattr(whole, name), getattr(found, name)
        assert one.dtype == other.dtype, name
        # Distributions are float32 where they are summed up batch by batch, sums are float64.
        rounding = 2e-7 if name in ("values_SM", "probability_SE", "logit_max_S") else 1e-12
        np.testing.assert_allclose(other, one, rtol=rounding, atol=1e-14, err_msg=name)
    for fact in ("contradicted", "margin_in_logits", "hashed", "top_k", "nonfinite_tokens"):
        assert getattr(found, fact) == getattr(whole, fact), fact


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 12.0, 60.0])
def test_flat_and_sharp_distributions_keep_their_digits(scoring: str, spread: float) -> None:
    """From nearly uniform to one expert with all but 1e-30 of the weight."""
    generator = np.random.default_rng(5)
    logits_TE = (generator.normal(size=(64, 16)) * spread).astype(np.float32)
    selected_TK = np.argsort(-logits_TE, axis=1, kind="stable")[:, :2].astype(np.int32)
    tokens = RouterTokens(
        logits_TE=logits_TE, selected_TK=selected_TK,
        weights_TK=np.full((64, 2), 0.5, dtype=np.float32), sequence_T=np.repeat([0, 1], 32),
        scoring=scoring, top_k=2, experts=16,
    )  # fmt: skip
    whole = sum_tokens(tokens)
    statistic = RoutingStatistic(dataclasses.replace(tokens, logits_TE=None), 2)
    arrays = (torch.from_numpy(a) for a in (logits_TE, selected_TK, tokens.weights_TK))
    statistic.add([(0, 0, 32), (1, 32, 64)], *arrays)
    found = statistic.finish()
    for column, name in enumerate(TOKEN_MEANS):
        np.testing.assert_allclose(
            found.values_SM[:, column], whole.values_SM[:, column], rtol=1e-5, atol=1e-12,
            err_msg=name,
        )  # fmt: skip
    z = torch.from_numpy(logits_TE).double()
    s, slope = find_scoring(scoring).tensor_logs(z)
    p = s.softmax(1)
    rest = torch.stack([p[:, [j for j in range(16) if j != e]].sum(1) for e in range(16)], dim=1)
    np.testing.assert_allclose(
        categorical_information(z.float(), scoring), p * rest * slope.square(), rtol=2e-5,
        atol=1e-15,
    )  # fmt: skip


def measure(model_type: str) -> CheckpointArrays:
    model = build_tiny(model_type).eval().requires_grad_(False)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    generator = np.random.default_rng(0)
    probe = Probe.of(
        tuple(Sequence(generator.integers(0, 48, n), None, None) for n in LENGTHS), name="random"
    )
    measurer = Measurer(
        describe_architecture(config), config, probe, group_sequences(len(LENGTHS)),
        Settings(fisher="categorical", device="cpu", batch_size=2),
    )  # fmt: skip
    return measurer.measure_model(model, Checkpoint(Path("nowhere")))


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_sample_of_the_tokens_is_kept_and_only_dispersion_rests_on_it(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(model_type)
    monkeypatch.setattr("moegeo_cli.measuring.measurer.sample_size", lambda shapes: 24)
    sampled = measure(model_type)
    column = TOKEN_MEANS.index("dispersion")
    for one, other in zip(whole.routers, sampled.routers, strict=True):
        assert other.sample_logits_ME.shape[0] == 24 < one.sample_logits_ME.shape[0]
        np.testing.assert_array_equal(
            other.sample_logits_ME, one.sample_logits_ME[sampled.sample_rows]
        )
        for name in ADDED:
            a, b = getattr(one.sums, name), getattr(other.sums, name)
            if a.ndim == 2 and name in ("values_SM", "counts_SM"):
                a, b = np.delete(a, column, axis=1), np.delete(b, column, axis=1)
            np.testing.assert_array_equal(b, a, err_msg=name)
        # The slow way: each sampled token's distance from the mean over all tokens.
        p_TE = probabilities(one.sample_logits_ME, one.scoring)
        apart = distance(p_TE[sampled.sample_rows], p_TE.mean(0)) / distance_max(one.experts)
        assert other.sums.counts_SM[:, column].sum() == 24
        assert other.sums.values_SM[:, column].sum() == pytest.approx(apart.sum(), rel=1e-6)


def test_dispersion_of_all_tokens_is_that_of_the_whole_measurement() -> None:
    tokens = tokens_of("softmax", 3, None)
    sums = measure_routing(tokens)
    assert tokens.logits_TE is not None
    p_TE = probabilities(np.delete(tokens.logits_TE, 11, axis=0), "softmax")
    apart = distance(p_TE, p_TE.mean(0)) / distance_max(8)
    column = TOKEN_MEANS.index("dispersion")
    assert sums.values_SM[:, column].sum() == pytest.approx(apart.sum(), rel=1e-9)
