r"""Heterogeneity: how much the Fisher information differs between the experts of a router.

Legend: E experts, D router input width, B draws.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moegeo_cli.geometry.fisher_sums import FEW_TOKENS, FisherSums
from moegeo_cli.geometry.resample import Draws, Estimate, missing

FORMS = (
    "heterogeneity", "heterogeneity_relative", "heterogeneity_trace", "heterogeneity_conditional",
)  # fmt: skip


def heterogeneity_estimates(sums: FisherSums, draws: Draws) -> dict[str, Estimate]:
    """The four forms of heterogeneity of one router, and its number of experts with few tokens.

    Args:
        sums: the router's Fisher sums.
        draws: the bootstrap draws, shared by all routers and checkpoints of the probe.

    Returns:
        Estimates by catalogue name. The null of a form is its value from sampling noise alone, if
        all experts had the same Fisher.

    Source: docs/reference/metrics.md; norms over the D entries, population standard deviations.
    """
    total_ED, has_E = sums.total_ED, sums.has_fisher_E
    reason = None
    if sums.tokens <= 0:
        reason = "no token was measured"
    elif not has_E.any():
        reason = "no expert has a Fisher: no token was dispatched"
    elif not np.isfinite(total_ED[has_E]).all():
        reason = "the Fisher is not finite"
    if reason is not None:
        return dict.fromkeys((*FORMS, "low_sample_experts"), missing(reason))
    count = int(sums.tokens) if sums.tokens_G is not None else None
    found = _norm_forms(sums, draws, count)
    found["heterogeneity_trace"] = _trace_form(sums, draws, count)
    found["heterogeneity_conditional"] = _conditional_form(sums, draws, count)
    few_E = sums.few_E
    found["low_sample_experts"] = (
        missing(f"the {sums.kind} kind counts no tokens")
        if few_E is None
        else Estimate(float(few_E.sum()), n=count)
    )
    left_out = int((~has_E).sum())
    if left_out:
        words = f"{left_out} of {len(has_E)} experts have no Fisher: left out"
        found |= {n: replace(e, reason=e.reason or words) for n, e in found.items() if n in FORMS}
    return found


def _norm_forms(sums: FisherSums, draws: Draws, count: int | None) -> dict[str, Estimate]:
    """Mean distance from the mean Fisher: absolute, and relative to that mean's norm."""
    has_E = sums.has_fisher_E
    fisher_ED = sums.total_ED[has_E] / sums.tokens
    mean_D = fisher_ED.mean(axis=0)
    value = float(np.linalg.norm(fisher_ED - mean_D, axis=1).mean())
    size = float(np.linalg.norm(mean_D))
    draws_B = relative_B = null_B = relative_null_B = None
    if sums.gram_EGG is not None and sums.tokens_G is not None and len(draws.counts_BG):
        assert sums.mean_gram_GG is not None
        tokens_B = draws.sum_draws(sums.tokens_G.astype(float))
        both = np.concatenate([sums.gram_EGG[has_E], sums.mean_gram_GG[None]])
        norms_BA = np.sqrt(np.maximum(draws.sum_quadratic(both), 0.0)) / tokens_B[:, None]
        draws_B, sizes_B = norms_BA[:, :-1].mean(axis=1), norms_BA[:, -1]
        null_B = _norm_noise(sums, draws, tokens_B)
        if sums.projected:
            # A projection has an error of a few percent, which is the same in all draws.
            whole = np.sqrt(np.maximum(both.sum(axis=(1, 2)), 0.0)) / sums.tokens
            draws_B = draws_B * (value / whole[:-1].mean() if whole[:-1].any() else 1.0)
            sizes_B = sizes_B * (size / whole[-1] if whole[-1] else 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative_B = np.where(sizes_B > 0, draws_B / sizes_B, np.nan)
            relative_null_B = null_B / size if size else None
    found = {"heterogeneity": Estimate(value, draws_B, count, null_B)}
    if size:
        relative = Estimate(value / size, relative_B, count, relative_null_B)
    else:
        relative = missing("every Fisher is zero", count)
    return found | {"heterogeneity_relative": relative}


def _norm_noise(sums: FisherSums, draws: Draws, tokens_B: np.ndarray) -> np.ndarray:
    """Mean over experts of ‖deviation in a draw − deviation in the probe‖, (B,)."""
    assert sums.gram_EGG is not None
    gram_EGG = sums.gram_EGG[sums.has_fisher_E]
    # ‖Σ c S / n − Σ S / N‖², expanded
    quadratic_BE = draws.sum_quadratic(gram_EGG)
    cross_BE = draws.counts_BG @ gram_EGG.sum(axis=2).T
    whole_E = gram_EGG.sum(axis=(1, 2))
    squared_BE = (
        quadratic_BE / tokens_B[:, None] ** 2
        - 2 * cross_BE / (tokens_B[:, None] * sums.tokens)
        + whole_E / sums.tokens**2
    )
    return np.asarray(np.sqrt(np.maximum(squared_BE, 0.0)).mean(axis=1))


def _trace_form(sums: FisherSums, draws: Draws, count: int | None) -> Estimate:
    trace_E = sums.trace_E[sums.has_fisher_E]
    if not trace_E.mean() > 0:
        return missing("every Fisher is zero", count)
    value = float(trace_E.std() / trace_E.mean())
    if sums.trace_GE is None or not len(draws.counts_BG):
        return Estimate(value, n=count)
    trace_BE = draws.sum_draws(sums.trace_GE[:, sums.has_fisher_E])
    return Estimate(value, _spread(trace_BE), count, _spread_noise(trace_BE, trace_E))


def _conditional_form(sums: FisherSums, draws: Draws, count: int | None) -> Estimate:
    """The trace form, with each expert's Fisher divided by the expert's mass."""
    if sums.mass_GE is None or sums.trace_GE is None:
        return missing(f"the {sums.kind} kind counts no tokens")
    mass_E = sums.mass_GE.sum(axis=0)
    kept_E = sums.has_fisher_E & (mass_E >= FEW_TOKENS)
    left_out = int((~kept_E).sum())
    if kept_E.sum() < 2:
        return missing(f"fewer than 2 experts have {FEW_TOKENS} tokens", count)
    trace_E = sums.total_ED[kept_E].sum(axis=1) / mass_E[kept_E]
    if not trace_E.mean() > 0:
        return missing("every Fisher is zero", count)
    value = float(trace_E.std() / trace_E.mean())
    reason = f"{left_out} of {len(kept_E)} experts under {FEW_TOKENS} tokens: left out"
    if not len(draws.counts_BG):
        return Estimate(value, n=count, reason=reason if left_out else None)
    with np.errstate(divide="ignore", invalid="ignore"):
        trace_BE = draws.sum_draws(sums.trace_GE[:, kept_E]) / draws.sum_draws(
            sums.mass_GE[:, kept_E]
        )
    return Estimate(
        value,
        _spread(trace_BE),
        count,
        _spread_noise(trace_BE, trace_E),
        reason if left_out else None,
    )


def _spread(trace_BE: np.ndarray) -> np.ndarray:
    """Population standard deviation over mean of each row, (B,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(trace_BE.std(axis=1) / trace_BE.mean(axis=1))


def _spread_noise(trace_BE: np.ndarray, trace_E: np.ndarray) -> np.ndarray:
    """Standard deviation over experts of (relative trace in a draw − in the probe), (B,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_BE = trace_BE / trace_BE.mean(axis=1, keepdims=True)
    return np.asarray((relative_BE - trace_E / trace_E.mean()).std(axis=1))
