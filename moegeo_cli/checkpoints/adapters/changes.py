"""Compute the change that an adapter makes to a weight, for any part of the weight.

The change is s·B·A in float32, added to the weight as in peft's `merge_and_unload`. The sum is cast
back to the weight's dtype. DoRA then scales the rows of the sum to learned norms.

Legend: E experts, R rows, C columns, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.layout import Piece, Shape
from moegeo_cli.checkpoints.adapters.parts import Target
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import ShapeError

KEPT = 4  # matrices cached in memory: the experts of one parameter are read one after another
Span = tuple[int, int]


class Matrices:
    """An adapter's tensors in float32, by names without wrappers.

    Args:
        index: the stored tensors.
        names: name without wrappers -> name in the file.
    """

    def __init__(self, index: WeightIndex, names: Mapping[str, str]) -> None:
        self.index, self.names = index, names
        self._held: dict[str, Any] = {}

    def shape(self, name: str) -> Shape:
        """Shape of a tensor."""
        return self.index.shape(self.names[name])

    def values(self, name: str) -> Any:
        """Values of a tensor, in float32."""
        found = self._held.pop(name, None)
        if found is None:
            found = self.index.tensor(self.names[name]).float()
        self._held[name] = found
        while len(self._held) > KEPT:
            self._held.pop(next(iter(self._held)), None)
        return found


@dataclass(slots=True)
class Change:
    """A low-rank change of one parameter of shape (R, C) or (E, R, C).

    Attributes:
        parameter: the parameter's name in the model.
        target: names of the matrices A and B, and of DoRA's norms.
        shape: the parameter's shape.
        scale: s.
        rank: r.
        transposed: whether the weight is stored (inputs, outputs), so that A belongs to its rows.
        rounded: whether the change is cast to the weight's dtype before it is added. peft does so
            where a parameter, not a module, is the target.
        matrices: the adapter's tensors.
        pieces: the stored tensors that it changes.
    """

    parameter: str
    target: Target
    shape: Shape
    scale: float
    rank: int
    transposed: bool
    rounded: bool
    matrices: Matrices
    pieces: list[Piece] = field(default_factory=list)

    @property
    def experts(self) -> int:
        """E; 1 for a matrix."""
        return self.shape[0] if len(self.shape) == 3 else 1

    def factors(self, expert: int) -> tuple[Any, Any]:
        """Two matrices (R, r) and (r, C). Their product times `scale` is an expert's change."""
        a, b = (self.matrices.values(self.target.parts[part]) for part in ("A", "B"))
        if self.target.embedding:
            return a.T, b.T
        if self.experts > 1:
            a = a.reshape(self.experts, -1, a.shape[-1])[expert]
            b = b.reshape(b.shape[0], -1, self.experts)[:, :, expert].contiguous()
        return (a.T, b.T) if self.transposed else (b, a)

    def values(self, expert: int, rows: Span, columns: Span) -> Any:
        """Some rows and columns of an expert's change, in float32."""
        left_Rr, right_rC = self.factors(expert)
        return left_Rr[slice(*rows)] @ right_rC[:, slice(*columns)] * self.scale

    def norm(self) -> float:
        """Frobenius norm of the whole change, computed from its factors."""
        total = 0.0
        for expert in range(self.experts):
            left_Rr, right_rC = (m.double() for m in self.factors(expert))
            total += float(((left_Rr.T @ left_Rr) * (right_rC @ right_rC.T)).sum())
        return float(abs(self.scale) * max(total, 0.0) ** 0.5)

    def add(self, piece: Piece, values: Any, rows: Span | None) -> Any:
        """Add the change to a stored tensor, or to some of its rows.

        Args:
            piece: the part of the parameter that the stored tensor holds.
            values: the tensor's values, of a floating dtype.
            rows: (start, stop) of these rows along the first dimension; None for all.

        Returns:
            The merged values, in the dtype of `values`.
        """
        import torch

        if values.ndim == 3:
            experts = range(*rows) if rows else range(self.experts)
            change = torch.stack([self._part(piece, e, None) for e in experts])
        else:
            change = self._part(piece, piece.expert or 0, rows)
        if self.rounded and values.dtype in (torch.float16, torch.bfloat16):
            change = change.to(values.dtype)
        merged = values.float() + change
        if "magnitude" in self.target.parts:
            norms = self.matrices.values(self.target.parts["magnitude"]).reshape(-1)
            if self.transposed:
                merged = norms[slice(*piece.columns)] / merged.norm(dim=0) * merged
            else:
                held = norms[slice(*piece.rows)]
                held = held[slice(*rows)] if rows else held
                merged = (held / merged.norm(dim=1))[:, None] * merged
        return merged.to(values.dtype)

    def _part(self, piece: Piece, expert: int, rows: Span | None) -> Any:
        """The change of one piece, or of some of its rows."""
        if piece.transposed:
            whole = self.values(expert, piece.rows, piece.columns).T
            return whole[slice(*rows) if rows else slice(None)]
        first = piece.rows[0]
        wanted = (first + rows[0], first + rows[1]) if rows else piece.rows
        return self.values(expert, wanted, piece.columns)


def check_shapes(change: Change, folder: Path) -> None:
    """Check that the matrices fit the parameter's shape and the rank in the config.

    Raises:
        ShapeError: they do not fit.
    """
    a, b = (change.matrices.shape(change.target.parts[part]) for part in ("A", "B"))
    *_, rows, columns = change.shape if len(change.shape) > 1 else (0, 0)
    count = change.rank * change.experts
    inputs, outputs = columns, rows
    if change.transposed or change.target.embedding:
        inputs, outputs = rows, columns
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b):
        raise ShapeError(
            f"{folder.name}: a matrix of the adapter is empty or not 2-D",
            found=f"{list(a)} and {list(b)} for {change.parameter}",
            hint="it was saved without being gathered (DeepSpeed ZeRO-3, FSDP): save it again",
        )
    if a != (count, inputs) or b != (outputs, count):
        raise ShapeError(
            f"{folder.name}: the adapter does not fit {change.parameter}",
            found=f"lora_A {list(a)} and lora_B {list(b)}; a weight of {list(change.shape)} and "
            f"rank {change.rank} need {[count, inputs]} and {[outputs, count]}",
            hint="the adapter belongs to another base model, or its config to another adapter",
            context={"module": change.target.module},
        )
    norms = change.target.parts.get("magnitude")
    if norms is not None and change.matrices.shape(norms)[-1:] != (outputs,):
        raise ShapeError(
            f"{folder.name}: the adapter's norms do not fit {change.parameter}",
            found=f"{list(change.matrices.shape(norms))} for {outputs} rows",
        )
