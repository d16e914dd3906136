"""The values of an adapter's changes, computed from its two small matrices a part at a time.

A change is s·B·A in float32, as peft's `merge_and_unload` adds it to the weight; the sum takes the
weight's own dtype again. DoRA scales the rows of the sum to learned norms.

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

KEPT = 4  # matrices that stay in memory: experts of one parameter follow each other
Span = tuple[int, int]


class Matrices:
    """An adapter's tensors by their plain names, in float32.

    Args:
        index: the file's.
        names: plain name -> name in the file.
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
        parameter: its name in the module tree.
        target: the matrices' names.
        shape: the parameter's.
        scale: s.
        rank: r.
        turned: whether A's side is the rows: weights stored (inputs, outputs).
        rounded: whether the change takes the weight's dtype before it is added, as peft does where
            a parameter is the target.
        pieces: where it goes.
    """

    parameter: str
    target: Target
    shape: Shape
    scale: float
    rank: int
    turned: bool
    rounded: bool
    matrices: Matrices
    pieces: list[Piece] = field(default_factory=list)

    @property
    def experts(self) -> int:
        """E; 1 for a matrix."""
        return self.shape[0] if len(self.shape) == 3 else 1

    def factors(self, expert: int) -> tuple[Any, Any]:
        """Two matrices (R, r) and (r, C), whose product by `scale` is an expert's change."""
        a, b = (self.matrices.values(self.target.parts[part]) for part in ("A", "B"))
        if self.target.embedding:
            return a.T, b.T
        if self.experts > 1:
            a = a.reshape(self.experts, -1, a.shape[-1])[expert]
            b = b.reshape(b.shape[0], -1, self.experts)[:, :, expert].contiguous()
        return (a.T, b.T) if self.turned else (b, a)

    def values(self, expert: int, rows: Span, columns: Span) -> Any:
        """A part of an expert's change, in float32, shape (rows, columns)."""
        high, wide = self.factors(expert)
        return high[slice(*rows)] @ wide[:, slice(*columns)] * self.scale

    def norm(self) -> float:
        """Frobenius norm of the whole change, without making it."""
        total = 0.0
        for expert in range(self.experts):
            high, wide = (m.double() for m in self.factors(expert))
            total += float(((high.T @ high) * (wide @ wide.T)).sum())
        return float(abs(self.scale) * max(total, 0.0) ** 0.5)

    def add(self, piece: Piece, values: Any, rows: Span | None) -> Any:
        """A saved tensor, or some of its rows, with the change that belongs to it.

        Args:
            piece: which part of the parameter it is.
            values: the tensor's values, of a floating dtype.
            rows: which of its rows along the first dimension they are; None for all.
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
            if self.turned:
                merged = norms[slice(*piece.columns)] / merged.norm(dim=0) * merged
            else:
                held = norms[slice(*piece.rows)]
                held = held[slice(*rows)] if rows else held
                merged = (held / merged.norm(dim=1))[:, None] * merged
        return merged.to(values.dtype)

    def _part(self, piece: Piece, expert: int, rows: Span | None) -> Any:
        high, wide = piece.rows, piece.columns
        if piece.turned:
            return self.values(expert, high, wide).T[slice(*rows) if rows else slice(None)]
        if rows:
            high = high[0] + rows[0], high[0] + rows[1]
        return self.values(expert, high, wide)


def check_shapes(change: Change, folder: Path) -> None:
    """Check that the matrices fit the parameter and the rank that the config says.

    Raises:
        ShapeError: they do not.
    """
    a, b = (change.matrices.shape(change.target.parts[part]) for part in ("A", "B"))
    *_, high, wide = change.shape if len(change.shape) > 1 else (0, 0)
    count = change.rank * change.experts
    inputs, outputs = (high, wide) if change.turned or change.target.embedding else (wide, high)
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b):
        raise ShapeError(
            f"{folder.name}: a matrix of the adapter has no two dimensions",
            found=f"{list(a)} and {list(b)} for {change.parameter}",
            hint="it was saved without being gathered (DeepSpeed ZeRO-3, FSDP): save it again",
        )
    if a != (count, inputs) or b != (outputs, count):
        raise ShapeError(
            f"{folder.name}: the adapter does not fit {change.parameter}",
            found=f"lora_A {list(a)} and lora_B {list(b)}; a weight of {list(change.shape)} and "
            f"rank {change.rank} ask for {[count, inputs]} and {[outputs, count]}",
            hint="adapter and base model are of different models, or its config of another adapter",
            context={"module": change.target.module},
        )
    norms = change.target.parts.get("magnitude")
    if norms is not None and change.matrices.shape(norms)[-1:] != (outputs,):
        raise ShapeError(
            f"{folder.name}: the adapter's norms do not fit {change.parameter}",
            found=f"{list(change.matrices.shape(norms))} for {outputs} rows",
        )
