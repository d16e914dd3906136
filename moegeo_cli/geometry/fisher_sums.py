r"""One router's diagonal Fisher sums, in total and as inner products between groups of sequences.

Intervals need the heterogeneity of every bootstrap draw. The Fisher of a draw is a weighted sum of
group sums, so its squared norm is a quadratic form of the draw's counts in a Gram matrix between
groups. One Gram matrix per expert is kept; the Fishers of the draws are never formed.

Legend: E experts, D router input width, P columns of the group sums (D, or fewer where
they are projected), G groups of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

# Experts with fewer tokens have a rough Fisher: they are flagged and left out of the conditional
# form of heterogeneity.
FEW_TOKENS = 30


@dataclass(frozen=True, slots=True)
class FisherSums:
    """One router's diagonal Fisher sums of one kind and unit.

    `total_ED` is the sum over tokens (for a kind without tokens, the Fisher itself). `gram_EGG`
    holds inner products between groups of F_e − F̄, where F̄ is the mean over experts;
    `mean_gram_GG` holds those of F̄. Both are of sums over tokens, and None without groups.
    `mass_GE` is the divisor of the conditional form: each expert's mass in each group.
    `projected` says that the Gram matrices are of a random projection of the Fisher.
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
        """Wrap a Fisher that is no sum over tokens, such as Adam's second moment.

        It has no groups, so its metrics have no intervals.
        """
        has_E = np.ones(len(total_ED), dtype=bool)
        return cls(kind, unit, total_ED, None, None, None, None, None, None, has_E)

    @property
    def tokens(self) -> float:
        """Number of tokens; 1 for a kind without tokens."""
        return float(self.tokens_G.sum()) if self.tokens_G is not None else 1.0

    @property
    def trace_E(self) -> np.ndarray:
        """Trace of each expert's Fisher per token, (E,); NaN for an expert without a Fisher."""
        trace_E = self.total_ED.sum(axis=1) / max(self.tokens, 1.0)
        return np.where(self.has_fisher_E, trace_E, np.nan)

    @property
    def few_E(self) -> np.ndarray | None:
        """Mask of experts with fewer than 30 dispatched tokens; None if tokens are not counted."""
        return None if self.dispatched_E is None else self.dispatched_E < FEW_TOKENS

    def without(self, experts: Sequence[int]) -> FisherSums:
        """The sums without the given experts, which must have no Fisher."""
        if not experts:
            return self

        def drop(values: np.ndarray | None, axis: int) -> np.ndarray | None:
            return None if values is None else np.delete(values, experts, axis)

        return replace(
            self,
            total_ED=np.delete(self.total_ED, experts, 0),
            trace_GE=drop(self.trace_GE, 1),
            gram_EGG=drop(self.gram_EGG, 0),
            mass_GE=drop(self.mass_GE, 1),
            dispatched_E=drop(self.dispatched_E, 0),
            has_fisher_E=np.delete(self.has_fisher_E, experts, 0),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for storage; Gram matrices are stored as float32 upper triangles."""
        optional = {
            "trace": self.trace_GE, "tokens": self.tokens_G, "mass": self.mass_GE,
            "dispatched": self.dispatched_E,
        }  # fmt: skip
        found = {"total": self.total_ED, "has": self.has_fisher_E}
        found |= {name: array for name, array in optional.items() if array is not None}
        if self.gram_EGG is not None and self.mean_gram_GG is not None:
            both = np.concatenate([self.gram_EGG, self.mean_gram_GG[None]])
            rows, columns = np.triu_indices(both.shape[1])
            # Scaled, because squares of small gradients underflow float32.
            scale = float(np.abs(both).max()) or 1.0
            found["grams"] = (both[:, rows, columns] / scale).astype(np.float32)
            found["gram_scale"] = np.array([scale])
            found["projected"] = np.array([self.projected])
        return found

    @classmethod
    def from_arrays(cls, kind: str, unit: str, arrays: Mapping[str, np.ndarray]) -> FisherSums:
        """Rebuild the sums from the arrays of `to_arrays`."""
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
    """Gram matrices between groups.

    Args:
        groups_GEP: Fisher sums of each group.
        has_E: which experts have a Fisher. The mean over experts is taken over these only; the
            matrices of the others are zero.

    Returns:
        The Gram matrices of each expert's deviation from the mean over experts, (E, G, G), and of
        that mean, (G, G); both float64.
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
