r"""How well the experts that a prompt uses predict the experts that its continuation uses.

Each sequence counts once, with the mean expert usage of its prompt and of its continuation. The
overlap of a prompt with its own continuation is compared with its overlap with continuations of
other sequences (what the layer's load predicts), and of other sequences of its domain.

Legend: S sequences, E experts, G groups of sequences, B draws.
Source: [MY] for the question; the estimators are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.pair_means import (
    SequenceSums,
    count_groups,
    pairs_across_sequences,
    pairs_by_label,
    pairs_within_sequences,
    sum_by_group,
)
from moegeo_cli.geometry.resample import Draws, Estimate, missing
from moegeo_cli.geometry.specialisation import p_value

PERMUTATIONS, MOST_SEQUENCES, LEAST_SEQUENCES = 999, 1024, 8
FEW = "fewer than {} sequences have a prompt and a continuation"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The comparison of prompts with their continuations.

    `own` is the overlap of a prompt with its own continuation, above chance; chance is the overlap
    with continuations of other sequences. `same_domain` is the overlap with continuations of other
    sequences of its domain, above the same chance. `correlation` is that of the deviations of
    prompt and continuation usage from their means. `p_value` tests `own` by permuting
    continuations.
    """

    own: Estimate
    same_domain: Estimate
    correlation: Estimate
    p_value: float | None


def compare_parts(
    prompt: SequenceSums, continuation: SequenceSums, labels_S: np.ndarray, draws: Draws, seed: int
) -> Rollout:
    """Compare each prompt's usage with that of its own continuation and of other continuations.

    Args:
        prompt: mean usage of each sequence's prompt, counted once (`Usage.means`).
        continuation: mean usage of each sequence's continuation, likewise.
        labels_S: the domain of each sequence, −1 for none.
        draws: the bootstrap draws.
        seed: seed of the permutations.

    Returns:
        The comparison; its estimates are missing with a reason if there are too few sequences.
    """
    both_S = (prompt.counts_S > 0) & (continuation.counts_S > 0)
    count, groups_S = int(both_S.sum()), draws.groups_S
    if count < LEAST_SEQUENCES:
        reason = missing(FEW.format(LEAST_SEQUENCES), count)
        return Rollout(reason, reason, reason, None)
    one, other = prompt.only(both_S), continuation.only(both_S)
    others = pairs_across_sequences(one, other, groups_S)
    own = pairs_within_sequences(one, other, groups_S).above_chance(others, draws, count)
    same = missing("fewer than two domains are named", count)
    if len(np.unique(labels_S[both_S & (labels_S >= 0)])) > 1:
        within, _ = pairs_by_label(one, other, np.where(both_S, labels_S, -1), groups_S)
        same = within.above_chance(others, draws, count)
    return Rollout(
        own, same, _correlation(one, other, draws, count), _test(one, other, both_S, seed)
    )


def _correlation(one: SequenceSums, other: SequenceSums, draws: Draws, count: int) -> Estimate:
    """Σ ⟨Δ, Δ′⟩ / √(Σ ‖Δ‖² Σ ‖Δ′‖²); Δ is a prompt's usage minus the mean, Δ′ a continuation's."""
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
    # If one part does not vary, its sum of squares is only rounding error.
    if min(size, size_too) <= 1e-9 * count:
        return missing("the usage of all sequences is the same", count)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws_B = top_B / np.sqrt(size_B * size_too_B)
    return Estimate(float(top / np.sqrt(size * size_too)), draws_B if len(draws_B) else None, count)


def _test(one: SequenceSums, other: SequenceSums, both_S: np.ndarray, seed: int) -> float:
    """p-value of the overlap with the own continuation, by permuting continuations."""
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
