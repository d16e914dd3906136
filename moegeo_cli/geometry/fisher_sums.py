r"""One router's diagonal Fisher sums, in total and between groups of sequences.

Intervals need every draw's heterogeneity without every draw's Fisher: a draw is a sum of
group sums, so squared norms are quadratic forms of its counts in Gram matrices between
groups, of which one is kept an expert.

Legend: E experts, D router input width, P columns of the group sums (D, or fewer where
they are projected), G groups of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

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
        """Sums of a Fisher that has no tokens, such as Adam's second moment.

        They give no intervals.
        """
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
        """The sums without some experts that have no Fisher."""
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
