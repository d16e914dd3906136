"""The sums of one layer of a checkpoint: digests, norms, sketches and further statistics.

**A statistical finding** (is this expert untrained? do router and experts fit?) plugs in here:
1. write a class with the methods of `Statistic` and add it to `STATISTICS`. While a layer is read
   it is given every expert's weights once, one matrix at a time, in float32; `result` returns plain
   JSON values (lists over experts; None for what could not be computed), which are kept in the
   store. Raise `version` whenever their meaning changes.
2. a rule (triage/rules) reads them from `LayerSums.statistics[name]` of each layer of each
   checkpoint. All other fields of `LayerSums` are there for rules too.
Per-expert fields are tuples with one entry an expert, at the expert's own number.

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
    """One router and its experts, in plain values.

    Attributes:
        layer: index of the decoder layer.
        router: path of the router's module on disk.
        experts: number of the router's rows.
        router_digest: of the router's weight and of the bias of its logits.
        row_norms: norm of each row of the router; None where it is not finite.
        router_nonfinite: rows with NaN or infinity, in the weight or in a bias.
        zero_rows: rows of zeros.
        masked: experts that a row or a bias switches off.
        stable_rank: squared Frobenius norm over squared spectral norm; None if not computed.
        cosine: mean absolute cosine between rows; None if not computed.
        width: D.
        bias_digest: of the selection bias; None without one.
        selection_bias: its values; None for one that is not finite, and without a bias.
        rounding: how coarsely it is stored, as `BiasRounding`; None where finely, or constant.
        top_k: experts a token; None where it is not known.
        loads: tokens by expert that the files count themselves; None where they do not.
        expert_digests: of each expert's stored bytes; None where they were not read (`--quick`).
        expert_norms: Frobenius norm of all matrices of each expert together.
        expert_nonfinite: experts with NaN or infinity in their weights.
        expert_zero: experts with a matrix, or rows that others have, of zeros.
        expert_near: groups of experts that differ by less than bfloat16 rounds, with the largest
            relative distance in the group.
        expert_distance: as `sketches.mean_distance` gives it.
        sketches: of each expert's matrices, as `sketches.pack` writes them; None where there are
            none.
        statistics: name of a `Statistic` -> what it returned.
        reasons: what is not there -> why.
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
    """Experts that are nearly equal, and the largest of their distances over their norm."""

    experts: tuple[int, ...]
    distance: float


class Statistic(Protocol):
    """A number computed from a layer's weights while they are read, in one pass.

    `name` is its key in `LayerSums.statistics`; `version` is part of the store's key.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, layer: MoELayer) -> None:
        """Begin with a layer, whose router can be read: `layer.weight_ED`."""

    def add(self, piece: Piece) -> None:
        """Take one weight of one expert; do not keep its values."""

    def result(self) -> Any:
        """The result as plain JSON values, which are stored."""


STATISTICS: tuple[type[Statistic], ...] = (RowAlignment, Coupling)
