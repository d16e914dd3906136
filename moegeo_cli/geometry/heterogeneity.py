r"""How far the experts' Fishers stand from one another, and that over its value at the start.

Intervals need every draw's heterogeneity without every draw's Fisher: a draw is a sum of
group sums, so squared norms are quadratic forms of its counts in Gram matrices between
groups, of which one is kept an expert.

Legend: E experts, D router input width, P columns of the group sums (D, or fewer where
they are projected), G groups of sequences, B draws, N baseline draws, L routers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, missing, ratio

FORMS = (
    "heterogeneity", "heterogeneity_relative", "heterogeneity_trace", "heterogeneity_conditional",
)  # fmt: skip
FHS_OF = {
    "fhs": "heterogeneity",
    "fhs_relative": "heterogeneity_relative",
    "fhs_trace": "heterogeneity_trace",
    "fhs_conditional": "heterogeneity_conditional",
}
# Under so many tokens an expert's Fisher is a rough guess: flagged, not in the conditional form.
FEW_TOKENS = 30


@dataclass(frozen=True, slots=True)
class FisherSums:
    """One router's diagonal Fisher sums of one kind and unit, in total and between groups.

    `total_ED` is the sum over tokens (for a kind without tokens, the Fisher itself).
    `gram_EGG` holds inner products between the groups' deviations F_e − F̄, `mean_gram_GG`
    between their means F̄, both of sums, None without groups. `mass_GE` is what the
    conditional form divides by. `projected`: the Gram matrices are of a random projection.
    """

    kind: str
    unit: str
    total_ED: np.ndarray
    trace_GE: np.ndarray | None
    gram_EGG: np.ndarray | None
    mean_gram_GG: np.ndarray | None
    tokens_G: np.ndarray | None
    mass_GE: np.ndarray | None
    dispatched_E: np.ndarray | None
    has_fisher_E: np.ndarray
    projected: bool = False

    @classmethod
    def without_groups(cls, kind: str, unit: str, total_ED: np.ndarray) -> FisherSums:
        """A Fisher that no token stands behind, as Adam's second moment: no intervals."""
        has_E = np.ones(len(total_ED), dtype=bool)
        return cls(kind, unit, total_ED, None, None, None, None, None, None, has_E)

    @property
    def tokens(self) -> float:
        """T, or 1 for a kind without tokens."""
        return float(self.tokens_G.sum()) if self.tokens_G is not None else 1.0

    @property
    def trace_E(self) -> np.ndarray:
        """Tr F_e, NaN for an expert without a Fisher."""
        trace_E = self.total_ED.sum(axis=1) / max(self.tokens, 1.0)
        return np.where(self.has_fisher_E, trace_E, np.nan)

    @property
    def few_E(self) -> np.ndarray | None:
        """Experts with fewer than 30 dispatched tokens; None where tokens are not counted."""
        return None if self.dispatched_E is None else self.dispatched_E < FEW_TOKENS

    def without(self, experts: Sequence[int]) -> FisherSums:
        """The same of a router without some experts, none of which has a Fisher."""
        if not experts:
            return self

        def left(values: np.ndarray | None, axis: int) -> np.ndarray | None:
            return None if values is None else np.delete(values, experts, axis)

        return replace(
            self,
            total_ED=np.delete(self.total_ED, experts, 0),
            trace_GE=left(self.trace_GE, 1),
            gram_EGG=left(self.gram_EGG, 0),
            mass_GE=left(self.mass_GE, 1),
            dispatched_E=left(self.dispatched_E, 0),
            has_fisher_E=np.delete(self.has_fisher_E, experts, 0),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, ready to be saved; Gram matrices as float32 triangles."""
        optional = {
            "trace": self.trace_GE, "tokens": self.tokens_G, "mass": self.mass_GE,
            "dispatched": self.dispatched_E,
        }  # fmt: skip
        found = {"total": self.total_ED, "has": self.has_fisher_E}
        found |= {name: array for name, array in optional.items() if array is not None}
        if self.gram_EGG is not None and self.mean_gram_GG is not None:
            both = np.concatenate([self.gram_EGG, self.mean_gram_GG[None]])
            rows, columns = np.triu_indices(both.shape[1])
            # float32 has no room for what squares of small gradients come to
            scale = float(np.abs(both).max()) or 1.0
            found["grams"] = (both[:, rows, columns] / scale).astype(np.float32)
            found["gram_scale"] = np.array([scale])
            found["projected"] = np.array([self.projected])
        return found

    @classmethod
    def from_arrays(cls, kind: str, unit: str, arrays: Mapping[str, np.ndarray]) -> FisherSums:
        """Rebuild from `to_arrays`."""
        gram_EGG = mean_gram_GG = None
        if "grams" in arrays:
            packed = arrays["grams"].astype(np.float64) * float(arrays["gram_scale"][0])
            groups = len(arrays["tokens"])
            rows, columns = np.triu_indices(groups)
            both = np.zeros((len(packed), groups, groups))
            both[:, rows, columns] = both[:, columns, rows] = packed
            gram_EGG, mean_gram_GG = both[:-1], both[-1]
        return cls(
            kind=kind,
            unit=unit,
            total_ED=arrays["total"],
            trace_GE=arrays.get("trace"),
            gram_EGG=gram_EGG,
            mean_gram_GG=mean_gram_GG,
            tokens_G=arrays.get("tokens"),
            mass_GE=arrays.get("mass"),
            dispatched_E=arrays.get("dispatched"),
            has_fisher_E=arrays["has"].astype(bool),
            projected=bool(arrays["projected"][0]) if "projected" in arrays else False,
        )


def grams(groups_GEP: np.ndarray, has_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products between groups, of the deviations from the mean expert and of that mean.

    Args:
        groups_GEP: Fisher sums of each group.
        has_E: which experts have a Fisher; the others are zero in the first and not in the mean.

    Returns:
        (E, G, G) and (G, G), float64.
    """
    groups, experts, _ = groups_GEP.shape
    if not has_E.any():
        return np.zeros((experts, groups, groups)), np.zeros((groups, groups))
    mean_GP = groups_GEP[:, has_E].mean(axis=1)
    gram_EGG = np.zeros((experts, groups, groups))
    for expert in np.flatnonzero(has_E):  # one at a time: no second copy of the group sums
        gap_GP = groups_GEP[:, expert] - mean_GP
        gram_EGG[expert] = gap_GP @ gap_GP.T
    return gram_EGG, mean_GP @ mean_GP.T


def heterogeneity_estimates(sums: FisherSums, draws: Draws) -> dict[str, Estimate]:
    """The four forms of heterogeneity of one router, and how many experts have few tokens.

    Args:
        sums: the router's Fisher sums.
        draws: shared by all routers and checkpoints of the probe.

    Returns:
        By catalogue name. The null of a form is what sampling noise alone would give where
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


def fhs_estimates(
    now: Sequence[Mapping[str, Estimate]],
    bases: Sequence[Sequence[Mapping[str, Estimate]]],
    draws: Draws,
) -> list[dict[str, Estimate]]:
    """Heterogeneity over its value at the baseline, by router.

    Args:
        now: each router's heterogeneity estimates.
        bases: the same of every baseline draw; several are fresh initialisations.
        draws: the draws that all of them share.

    Returns:
        By router and catalogue name. With several baseline draws the base is their geometric
        mean, and the interval holds the spread of ln H(0) between them as well.

    Source: [GM]'s Fisher Heterogeneity Score H(t)/H(0); estimator ours.
    """
    found: list[dict[str, Estimate]] = [{} for _ in now]
    for name, form in FHS_OF.items():
        column = [[base[place].get(form) for base in bases] for place in range(len(now))]
        noise_BL = None
        if len(bases) > 1 and len(draws.counts_BG) and _all_positive(column):
            values_LN = [[e.value for e in router if e and e.value] for router in column]
            logs_NL = np.log(np.array(values_LN)).T
            noise_BL = draws.predict_noise(logs_NL - logs_NL.mean(axis=0))
        for place, router in enumerate(now):
            noise_B = None if noise_BL is None else noise_BL[:, place]
            found[place][name] = _score(router[form], column[place], noise_B)
    return found


def _all_positive(column: list[list[Estimate | None]]) -> bool:
    return all(e is not None and e.value and e.value > 0 for router in column for e in router)


def _score(now: Estimate, bases: Sequence[Estimate | None], noise_B: np.ndarray | None) -> Estimate:
    known = [b for b in bases if b is not None and b.value is not None]
    if len(known) < len(bases) or not known:
        why = next((b.reason for b in bases if b is not None and b.reason), None)
        return missing(f"the baseline has no value: {why or 'router not measured'}", now.n)
    if any(b.value == 0 for b in known):
        return missing("the baseline's heterogeneity is zero", now.n)
    null = [float(b.null_B.mean()) for b in known if b.null_B is not None]
    values = np.array([b.value for b in known])
    if null and np.exp(np.log(values).mean()) <= np.mean(null):
        return missing("the baseline's heterogeneity is not above its sampling noise",
                       now.n)  # fmt: skip
    draws = [b.draws_B for b in known if b.draws_B is not None]
    base_B = None
    if len(draws) == len(known):
        with np.errstate(divide="ignore", invalid="ignore"):
            base_B = np.exp(np.mean([np.log(d) for d in draws], axis=0))
        if noise_B is not None:
            base_B = base_B * np.exp(noise_B)
    base = Estimate(float(np.exp(np.log(values).mean())), base_B)
    score = ratio(now, base)
    return replace(score, reason=score.reason or now.reason)


def _norm_forms(sums: FisherSums, draws: Draws, count: int | None) -> dict[str, Estimate]:
    """The mean distance from the mean Fisher, as it is and over that mean's norm."""
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
            # A projection errs by a few percent, the same way in all draws.
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
    """Mean over experts of how far each draw's deviation lies from the probe's own."""
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
    """The trace form of each expert's Fisher per its own mass."""
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
    """Population standard deviation over mean, row by row."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(trace_BE.std(axis=1) / trace_BE.mean(axis=1))


def _spread_noise(trace_BE: np.ndarray, trace_E: np.ndarray) -> np.ndarray:
    """Spread of what the draws differ by from the probe's own relative traces."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_BE = trace_BE / trace_BE.mean(axis=1, keepdims=True)
    return np.asarray((relative_BE - trace_E / trace_E.mean()).std(axis=1))
