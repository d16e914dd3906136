"""The stored arrays of a measured checkpoint: sums and samples, from which all metrics follow.

They are converted to named arrays for `measurements.safetensors` and back. Scalars that describe a
router are stored in the record, not in the arrays.

Legend: S sequences, G groups of sequences, E experts, D router input width, K experts
chosen per token, M sampled tokens, N sampled router inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moegeo_cli.geometry.fisher_sums import FisherSums
from moegeo_cli.geometry.sums import RoutingSums
from moegeo_cli.records.facts import ReplayFacts
from moegeo_cli.records.run import RouterState


@dataclass(frozen=True, slots=True)
class RouterArrays:
    """One router: sums by sequence, Fisher sums, and samples for distances between checkpoints.

    `sample_logits_ME` and `sample_selected_MK` are of the same tokens in every checkpoint;
    `sample_x_ND` are router inputs at some of these tokens. A router that sees only a part of each
    sequence has its own `sample_rows` and `input_rows`, as indices into the tokens that it sees.
    """

    layer: int
    path: str
    experts: int
    top_k: int | None
    scoring: str
    sums: RoutingSums
    fishers: Mapping[tuple[str, str], FisherSums]
    weight_ED: np.ndarray
    bias_E: np.ndarray | None
    sample_logits_ME: np.ndarray
    sample_selected_MK: np.ndarray
    sample_x_ND: np.ndarray | None
    sample_rows: np.ndarray | None = None
    input_rows: np.ndarray | None = None
    # Experts with weights that are not finite, and with weights that are zero; None: not checked.
    experts_nonfinite: tuple[int, ...] | None = None
    experts_zero: tuple[int, ...] | None = None
    # Groups of experts with equal weights, bit for bit; None: not checked.
    experts_identical: tuple[tuple[int, ...], ...] | None = None
    selection_bias_E: np.ndarray | None = None
    # Experts that the router's weights or biases switch off.
    masked: tuple[int, ...] = ()
    # Share of sampled tokens whose choice the rounding of the selection bias may change, or None.
    bias_changes: float | None = None

    @property
    def off(self) -> tuple[int, ...]:
        """Masked experts with load 0."""
        return tuple(e for e in self.masked if not self.sums.dispatch_SE[:, e].any())

    @property
    def selectable_sums(self) -> RoutingSums:
        """The sums of the experts that can be chosen."""
        return self.sums.without(self.off)

    def selectable_fisher(self, kind: tuple[str, str]) -> FisherSums:
        """The Fisher sums of a kind and unit, of the experts that can be chosen."""
        return self.fishers[kind].without(self.off)

    @property
    def state(self) -> RouterState:
        """One of "ok", "nonfinite" (NaN or Inf in the weights), "zero" (all rows zero)."""
        if not np.isfinite(self.weight_ED).all():
            return "nonfinite"
        return "ok" if self.weight_ED.any() else "zero"

    @property
    def zero_rows(self) -> tuple[int, ...]:
        """Experts whose row of the router is zero."""
        return tuple(int(e) for e in np.flatnonzero(~self.weight_ED.any(axis=1)))


@dataclass(frozen=True, slots=True)
class CheckpointArrays:
    """One checkpoint: the arrays of its routers, and the loss of each sequence.

    `loss_S` is None if no loss was computed. `sample_rows` are the probe's rows of the samples;
    `input_rows` are those of them whose router inputs are kept.
    """

    routers: tuple[RouterArrays, ...]
    loss_S: np.ndarray | None
    loss_tokens_S: np.ndarray
    groups_S: np.ndarray
    sample_rows: np.ndarray
    input_rows: np.ndarray
    routers_found: int
    not_measured: Mapping[str, str] = field(default_factory=dict)
    replay: ReplayFacts = field(default_factory=ReplayFacts)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for storage."""
        arrays = {
            "loss_tokens": self.loss_tokens_S,
            "groups": self.groups_S,
            "sample_rows": self.sample_rows,
            "input_rows": self.input_rows,
        }
        if self.loss_S is not None:
            arrays["loss"] = self.loss_S
        for place, router in enumerate(self.routers):
            own = {f"sums.{name}": a for name, a in router.sums.to_arrays().items()}
            for (kind, unit), fisher in router.fishers.items():
                own |= {f"fisher.{kind}.{unit}.{n}": a for n, a in fisher.to_arrays().items()}
            own["weight"] = router.weight_ED
            own["sample_logits"] = router.sample_logits_ME
            own["sample_selected"] = router.sample_selected_MK
            if router.bias_E is not None:
                own["bias"] = router.bias_E
            optional = {
                "selection_bias": router.selection_bias_E,
                "sample_x": router.sample_x_ND,
                "sample_rows": router.sample_rows,
                "input_rows": router.input_rows,
            }
            own |= {name: array for name, array in optional.items() if array is not None}
            arrays |= {f"router.{place}.{name}": a for name, a in own.items()}
        return arrays

    def describe(self) -> list[dict[str, Any]]:
        """The facts about each router that are not arrays, for the record."""
        return [
            {"layer": r.layer, "path": r.path, "experts": r.experts, "top_k": r.top_k,
             "scoring": r.scoring, "fishers": [list(key) for key in r.fishers],
             "experts_nonfinite": _list(r.experts_nonfinite), "experts_zero": _list(r.experts_zero),
             "experts_identical": None if r.experts_identical is None
             else [list(group) for group in r.experts_identical],
             "masked": list(r.masked), "bias_changes": r.bias_changes}
            for r in self.routers
        ]  # fmt: skip

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], described: Sequence[Mapping[str, Any]], **rest: Any
    ) -> CheckpointArrays:
        """Rebuild from the arrays of `to_arrays` and the facts of `describe`."""
        routers = []
        for place, facts in enumerate(described):
            own = _under(arrays, f"router.{place}.")
            routers.append(
                RouterArrays(
                    layer=facts["layer"],
                    path=facts["path"],
                    experts=facts["experts"],
                    top_k=facts["top_k"],
                    scoring=facts["scoring"],
                    sums=RoutingSums.from_arrays(_under(own, "sums.")),
                    fishers={
                        (kind, unit): FisherSums.from_arrays(
                            kind, unit, _under(own, f"fisher.{kind}.{unit}.")
                        )
                        for kind, unit in facts["fishers"]
                    },
                    weight_ED=own["weight"],
                    bias_E=own.get("bias"),
                    sample_logits_ME=own["sample_logits"],
                    sample_selected_MK=own["sample_selected"],
                    sample_x_ND=own.get("sample_x"),
                    sample_rows=own.get("sample_rows"),
                    input_rows=own.get("input_rows"),
                    experts_nonfinite=_numbers(facts["experts_nonfinite"]),
                    experts_zero=_numbers(facts["experts_zero"]),
                    experts_identical=None
                    if facts["experts_identical"] is None
                    else tuple(tuple(group) for group in facts["experts_identical"]),
                    selection_bias_E=own.get("selection_bias"),
                    masked=tuple(facts["masked"]),
                    bias_changes=facts["bias_changes"],
                )
            )
        return cls(
            routers=tuple(routers),
            loss_S=arrays.get("loss"),
            loss_tokens_S=arrays["loss_tokens"],
            groups_S=arrays["groups"],
            sample_rows=arrays["sample_rows"],
            input_rows=arrays["input_rows"],
            **rest,
        )


def _list(values: tuple[int, ...] | None) -> list[int] | None:
    return None if values is None else list(values)


def _numbers(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
