"""The sums of one MoE layer of a checkpoint: digests, norms, sketches and further statistics.

To add a statistic of experts (is this expert untrained? do router and experts fit?):
1. Write a class with the methods of `Statistic` and add it to `STATISTICS`. While a layer is read,
   the class gets every expert's weights once, one matrix at a time, in float32. `result` returns
   plain JSON values (lists over experts; None for what could not be computed), which are stored.
   Raise `version` when their meaning changes.
2. Write a rule (`*_rules.py`) that reads them from `LayerSums.statistics[name]`. Rules may read all
   other fields of `LayerSums` too.
Per-expert fields are tuples with one entry per expert, at the expert's number.

Legend: E experts, D width of the router's input, R rows and C columns of an expert's matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from moegeo_cli.commands.check.coupling import Coupling
from moegeo_cli.commands.check.reading import MoELayer, Piece
from moegeo_cli.commands.check.row_alignment import RowAlignment


@dataclass(frozen=True, slots=True)
class LayerSums:
    """The sums of one router and its experts, in plain values.

    Attributes:
        layer: index of the decoder layer.
        router: path of the router's module on disk.
        experts: number of the router's rows.
        router_digest: digest of the router's weight and logit bias.
        row_norms: norm of each row of the router; None for a row that is not finite.
        router_nonfinite: rows with NaN or infinity, in the weight or in a bias.
        zero_rows: rows of zeros.
        masked: experts that a row or a bias switches off.
        stable_rank: squared Frobenius norm over squared spectral norm; None if not computed.
        cosine: mean absolute cosine between rows; None if not computed.
        width: D; None if not known.
        bias_digest: digest of the selection bias; None if there is no bias.
        selection_bias: its values, None for values that are not finite; None if there is no bias.
        rounding: the fields of `BiasRounding`; None if stored in fine precision or constant.
        top_k: experts per token; None if not known.
        loads: tokens per expert, if the files count them; else None.
        expert_digests: digest of each expert's stored bytes; None if not read (`--quick`).
        expert_norms: Frobenius norm of each expert, over all its matrices.
        expert_nonfinite: experts with NaN or infinity in their weights.
        expert_zero: experts with a matrix of zeros, or with rows of zeros that are not zero in
            every expert.
        expert_near: groups of experts that differ by less than rounding to bfloat16.
        expert_distance: result of `sketches.mean_distance`.
        sketches: sketches of all experts, as text from `sketches.pack`; None if there are none.
        statistics: name of a `Statistic` -> its result.
        reasons: name of what is missing -> why.
    """

    layer: int | None
    router: str
    experts: int
    router_digest: str
    row_norms: tuple[float | None, ...] = ()
    router_nonfinite: tuple[int, ...] = ()
    zero_rows: tuple[int, ...] = ()
    masked: tuple[int, ...] = ()
    stable_rank: float | None = None
    cosine: float | None = None
    width: int | None = None
    bias_digest: str | None = None
    selection_bias: tuple[float | None, ...] | None = None
    rounding: Mapping[str, Any] | None = None
    top_k: int | None = None
    loads: tuple[float, ...] | None = None
    expert_digests: tuple[str, ...] | None = None
    expert_norms: tuple[float | None, ...] | None = None
    expert_nonfinite: tuple[int, ...] = ()
    expert_zero: tuple[int, ...] = ()
    expert_near: tuple[NearGroup, ...] = ()
    expert_distance: float | None = None
    sketches: str | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NearGroup:
    """Experts that are nearly equal, and the largest of their relative distances."""

    experts: tuple[int, ...]
    distance: float


class Statistic(Protocol):
    """A number computed from a layer's weights while they are read, in one pass.

    `name` is its key in `LayerSums.statistics`. `version` is part of the store key.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, layer: MoELayer) -> None:
        """Start with a layer whose router could be read (`layer.weight_ED` is not None)."""

    def add(self, piece: Piece) -> None:
        """Add one weight of one expert. Do not keep a reference to its values."""

    def result(self) -> Any:
        """The result, as plain JSON values. It is stored."""


STATISTICS: tuple[type[Statistic], ...] = (RowAlignment, Coupling)
