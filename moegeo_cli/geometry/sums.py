"""One router's tokens, and their sums by sequence, from which all its metrics are computed.

Legend: T tokens, S sequences, E experts, K experts chosen per token, M token means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# If the selection rule fails for more than this share of the tokens, margins are not reported.
CONTRADICTIONS = 1e-3
TOKEN_MEANS = (
    "fsi", "dispersion", "entropy_token", "logit_z",
    "fsi_dispatch", "entropy_dispatch", "margin", "near_ties", "near_ties_centred",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouterTokens:
    """One router's tokens, in the probe's order.

    Attributes:
        logits_TE: raw logits, float32; None for a hash router.
        selected_TK: expert indices, −1 for an empty or dropped slot.
        weights_TK: the combine weights that were applied.
        sequence_T: each token's sequence.
        scoring: name of the scoring.
        selection_bias_E: bias that acts on the selection only.
        bias_on: whether that bias is added to "scores" or "logits".
        groups: (number of groups, number of groups kept), or None.
        group_score: how groups are ranked.
        top_k: K; None if it varies.
        experts: E, for a hash router.
        sequences: number of sequences, if the last ones may be empty.
        masked: experts that are switched off and never selected; distributions leave them out.
    """

    logits_TE: np.ndarray | None
    selected_TK: np.ndarray
    weights_TK: np.ndarray
    sequence_T: np.ndarray
    scoring: str
    selection_bias_E: np.ndarray | None = None
    bias_on: str = "scores"
    groups: tuple[int, int] | None = None
    group_score: str = "top2"
    top_k: int | None = None
    experts: int | None = None
    sequences: int | None = None
    masked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutingSums:
    """One router's sums over the tokens of each sequence.

    Attributes:
        values_SM: sums of the `TOKEN_MEANS`, in their final units.
        counts_SM: number of tokens in each of these sums.
        sequence_tokens: number of tokens of each sequence.
        dispatch_SE: number of (token, slot) pairs of each expert.
        probability_SE: sums of the routing distributions p.
        combine_SE: sums of the combine weights, normalised to 1 per token.
        logit_max_S: maximum of the absolute logits (centred if the scoring ignores a constant).
        nonfinite_S: number of tokens with a non-finite logit or combine weight.
        top_k: K; 0 if it varies.
        contradicted: number of tokens whose selection the rule does not explain; −1 without a rule.
        margin_in_logits: whether margins are in logits; otherwise in selection scores.
        hashed: whether this is a hash router.
    """

    values_SM: np.ndarray
    counts_SM: np.ndarray
    sequence_tokens: np.ndarray
    dispatch_SE: np.ndarray
    probability_SE: np.ndarray
    combine_SE: np.ndarray
    logit_max_S: np.ndarray
    nonfinite_S: np.ndarray
    top_k: int
    contradicted: int
    margin_in_logits: bool
    hashed: bool = False

    @property
    def experts(self) -> int:
        """Number of experts, E."""
        return int(self.dispatch_SE.shape[1])

    @property
    def tokens(self) -> int:
        """Number of tokens, T."""
        return int(self.sequence_tokens.sum())

    @property
    def nonfinite_tokens(self) -> int:
        """Number of tokens with NaN or infinity among their logits or combine weights."""
        return int(self.nonfinite_S.sum())

    @property
    def load_E(self) -> np.ndarray | None:
        """Each expert's share of the dispatch, summing to 1; None if nothing was dispatched."""
        counts_E = self.dispatch_SE.sum(axis=0).astype(np.float64)
        return counts_E / counts_E.sum() if counts_E.sum() else None

    @property
    def mean_probability_E(self) -> np.ndarray | None:
        """Mean of p over the tokens, (E,); None if no token has a p."""
        total = self.probability_SE.sum()
        return None if self.hashed or not total else self.probability_SE.sum(axis=0) / total

    def subset(self, chosen_S: np.ndarray) -> RoutingSums:
        """The sums of some sequences, for example of a domain, chosen by a mask or by indices."""
        arrays = self.to_arrays()
        facts = {"facts": arrays.pop("facts")}
        return self.from_arrays({name: a[chosen_S] for name, a in arrays.items()} | facts)

    def without(self, masked: Sequence[int]) -> RoutingSums:
        """The sums without the given experts, whose columns must be zero."""
        if not masked:
            return self
        return dataclasses.replace(
            self,
            dispatch_SE=np.delete(self.dispatch_SE, masked, axis=1),
            probability_SE=np.delete(self.probability_SE, masked, axis=1),
            combine_SE=np.delete(self.combine_SE, masked, axis=1),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for storage."""
        facts = [self.top_k, self.contradicted, int(self.margin_in_logits), int(self.hashed)]
        return {
            "values": self.values_SM,
            "counts": self.counts_SM,
            "tokens": self.sequence_tokens,
            "dispatch": self.dispatch_SE,
            "probability": self.probability_SE,
            "combine": self.combine_SE,
            "logit_max": self.logit_max_S,
            "nonfinite": self.nonfinite_S,
            "facts": np.array(facts, dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RoutingSums:
        """Rebuild the sums from the arrays of `to_arrays`."""
        top_k, contradicted, in_logits, hashed = (int(v) for v in arrays["facts"])
        return cls(
            values_SM=arrays["values"],
            counts_SM=arrays["counts"],
            sequence_tokens=arrays["tokens"],
            dispatch_SE=arrays["dispatch"],
            probability_SE=arrays["probability"],
            combine_SE=arrays["combine"],
            logit_max_S=arrays["logit_max"],
            nonfinite_S=arrays["nonfinite"],
            top_k=top_k,
            contradicted=contradicted,
            margin_in_logits=bool(in_logits),
            hashed=bool(hashed),
        )
