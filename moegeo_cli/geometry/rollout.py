r"""How far the experts of a prompt predict those of its continuation.

Each sequence counts once, by the mean usage of its prompt and of its continuation. A prompt's own
continuation is held against those of other sequences: what stands above them is what the prompt
tells beyond the layer's load. Of sequences of one domain, it is what the domain tells.

Legend: S sequences, E experts, G groups of sequences, B draws.
Source: [MY] for the question; the estimators are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.pair_means import (
    Sums,
    count_groups,
    pairs_apart,
    pairs_labelled,
    pairs_together,
    sum_by_group,
)
from moegeo_cli.geometry.resample import Draws, Estimate, missing
from moegeo_cli.geometry.specialisation import p_value

PERMUTATIONS, MOST_SEQUENCES, LEAST_SEQUENCES = 999, 1024, 8
FEW = "fewer than {} sequences have a prompt and a continuation"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The comparison of prompts with their continuations.

    `own` is the overlap of a prompt with its own continuation, above that with other sequences'
    (which is chance here); `same_domain` that with other sequences of its domain, likewise.
    `correlation` is that of what the two deviate by from their means; `p_value` how often own
    overlap is as large where sequences trade continuations.
    """

    own: Estimate
    same_domain: Estimate
    correlation: Estimate
    p_value: float | None


def compare_parts(
    prompt: Sums, continuation: Sums, labels_S: np.ndarray, draws: Draws, seed: int
) -> Rollout:
    """Compare each prompt's usage with that of its own continuation and of others.

    Args:
        prompt: mean usage of each sequence's prompt, counted once (`Usage.means`).
        continuation: of its continuation.
        labels_S: the domain of each sequence, −1 for none.
        draws: the bootstrap draws.
        seed: of the permutations.
    """
    both_S = (prompt.counts_S > 0) & (continuation.counts_S > 0)
    count, groups_S = int(both_S.sum()), draws.groups_S
    if count < LEAST_SEQUENCES:
        reason = missing(FEW.format(LEAST_SEQUENCES), count)
        return Rollout(reason, reason, reason, None)
    one, other = prompt.only(both_S), continuation.only(both_S)
    others = pairs_apart(one, other, groups_S)
    own = pairs_together(one, other, groups_S).above(others, draws, count)
    same = missing("fewer than two domains are named", count)
    if len(np.unique(labels_S[both_S & (labels_S >= 0)])) > 1:
        within, _ = pairs_labelled(one, other, np.where(both_S, labels_S, -1), groups_S)
        same = within.above(others, draws, count)
    return Rollout(
        own, same, _correlation(one, other, draws, count), _test(one, other, both_S, seed)
    )


def _correlation(one: Sums, other: Sums, draws: Draws, count: int) -> Estimate:
    """Σ ⟨Δ, Δ′⟩ over √(Σ ‖Δ‖² Σ ‖Δ′‖²), Δ being a part's usage less the mean of such parts."""
    groups = count_groups(draws.groups_S)
    one_GE, other_GE = (sum_by_group(s.sums_SE, draws.groups_S, groups) for s in (one, other))
    counts_G = sum_by_group(one.counts_S, draws.groups_S, groups)
    parts = []
    for a, b, a_GE, b_GE in (
        (one, other, one_GE, other_GE), (one, one, one_GE, one_GE),
        (other, other, other_GE, other_GE),
    ):  # fmt: skip
        products_G = sum_by_group(
            np.einsum("se,se->s", a.sums_SE, b.sums_SE), draws.groups_S, groups
        )
        cross_GG = 0.5 * (a_GE @ b_GE.T + b_GE @ a_GE.T)
        whole = products_G.sum() - cross_GG.sum() / counts_G.sum()
        quadratic_B = draws.sum_quadratic(cross_GG[None])[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            of_draw_B = draws.counts_BG @ products_G - quadratic_B / (draws.counts_BG @ counts_G)
        parts.append((float(whole), of_draw_B))
    (top, top_B), (size, size_B), (size_too, size_too_B) = parts
    # A part that does not vary leaves rounding alone.
    if min(size, size_too) <= 1e-9 * count:
        return missing("the usage of all sequences is the same", count)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws_B = top_B / np.sqrt(size_B * size_too_B)
    return Estimate(float(top / np.sqrt(size * size_too)), draws_B if len(draws_B) else None, count)


def _test(one: Sums, other: Sums, both_S: np.ndarray, seed: int) -> float:
    """p-value of the overlap with one's own continuation, permuting whole continuations."""
    generator = np.random.default_rng(seed)
    rows = np.flatnonzero(both_S)
    if len(rows) > MOST_SEQUENCES:
        rows = np.sort(generator.choice(rows, MOST_SEQUENCES, replace=False))
    overlap_SS = one.sums_SE[rows] @ other.sums_SE[rows].T
    places = np.arange(len(rows))
    null_P = np.array([
        overlap_SS[places, generator.permutation(len(rows))].mean() for _ in range(PERMUTATIONS)
    ])  # fmt: skip
    return p_value(float(overlap_SS.diagonal().mean()), null_P)
