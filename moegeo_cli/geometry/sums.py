"""One router's tokens, and their sums by sequence: what all its metrics are made from.

Legend: T tokens, S sequences, E experts, K experts chosen per token, M token means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# A selection rule that fails for more than this share of the tokens is not understood.
CONTRADICTIONS = 1e-3
TOKEN_MEANS = (
    "fsi", "dispersion", "entropy_token", "logit_z",
    "fsi_dispatch", "entropy_dispatch", "margin", "near_ties", "near_ties_centred",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouterTokens:
    """One router's tokens, in the probe's order.

    `logits_TE` are the raw logits, float32 (None for a router that hashes: then `experts`
    says E). `selected_TK` holds expert indices, −1 for an empty or dropped slot;
    `weights_TK` the combine weights applied. `selection_bias_E` acts on the selection alone,
    added to the scores or to the logits (`bias_on`); `groups` is (groups, groups kept),
    ranked by `group_score`. `top_k` is None where it varies, `sequences` the number of
    sequences where the last ones may be empty. `masked` experts are switched off and never
    selected: distributions are over the others.
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
    """Sums over each sequence's tokens.

    `values_SM` are sums of the `TOKEN_MEANS`, already in their final units, and
    `counts_SM` how many tokens went into each. `probability_SE` sums p, `combine_SE` the
    combine weights normalised to 1, `dispatch_SE` counts (token, slot) pairs. `logit_max_S`
    is a maximum. `top_k` is 0 where it varies. `contradicted` counts tokens whose selection
    the rule does not explain, −1 where no rule could be held against it.
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
        """E."""
        return int(self.dispatch_SE.shape[1])

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.sequence_tokens.sum())

    @property
    def nonfinite_tokens(self) -> int:
        """Tokens with a NaN or an infinity among their logits or combine weights."""
        return int(self.nonfinite_S.sum())

    @property
    def load_E(self) -> np.ndarray | None:
        """Share of the dispatch of each expert, summing to 1; None without any dispatch."""
        counts_E = self.dispatch_SE.sum(axis=0).astype(np.float64)
        return counts_E / counts_E.sum() if counts_E.sum() else None

    @property
    def mean_probability_E(self) -> np.ndarray | None:
        """Mean of p over the tokens; None where no token has one."""
        total = self.probability_SE.sum()
        return None if self.hashed or not total else self.probability_SE.sum(axis=0) / total

    def subset(self, chosen_S: np.ndarray) -> RoutingSums:
        """The same of the sequences that a mask or an index array chooses, a domain's for one."""
        arrays = self.to_arrays()
        facts = {"facts": arrays.pop("facts")}
        return self.from_arrays({name: a[chosen_S] for name, a in arrays.items()} | facts)

    def without(self, masked: Sequence[int]) -> RoutingSums:
        """The same of a router without some experts, whose columns hold nothing."""
        if not masked:
            return self
        return dataclasses.replace(
            self,
            dispatch_SE=np.delete(self.dispatch_SE, masked, axis=1),
            probability_SE=np.delete(self.probability_SE, masked, axis=1),
            combine_SE=np.delete(self.combine_SE, masked, axis=1),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, ready to be saved."""
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
        """Rebuild from `to_arrays`."""
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
