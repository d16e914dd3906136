"""Where an adapter's changes go: from parameters of the module tree to the tensors in the files.

A file may keep one parameter of the tree under another name or in several tensors (each expert by
itself, two projections apart). A change of the parameter is then cut as the parameter is.

Legend: E experts, R rows, C columns of a parameter's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moegeo_cli.checkpoints.weights import WeightIndex

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """How one parameter of the module tree is made of saved tensors.

    Attributes:
        shape: the parameter's.
        names: the saved tensors, in groups; those of one group are stacked as experts.
        operations: what is done with them, by the names that transformers gives it.
        turned: whether experts' matrices are stored (inputs, outputs).
    """

    shape: Shape
    names: tuple[tuple[str, ...], ...]
    operations: tuple[str, ...] = ()
    turned: bool = False


# Saved tensors -> how each parameter is made of them, in the module tree's order.
Tracer = Callable[[WeightIndex], Mapping[str, Filling]]


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a parameter that one saved tensor is.

    Attributes:
        name: of the saved tensor.
        expert: which expert it is, along the parameter's first dimension; None for all of it.
        rows: (start, stop) of its rows within the parameter's matrix.
        columns: likewise.
        turned: whether the saved matrices are the parameter's transposed.
    """

    name: str
    expert: int | None
    rows: tuple[int, int]
    columns: tuple[int, int]
    turned: bool = False


def cut(filling: Filling, shapes: Mapping[str, Shape]) -> list[Piece] | None:
    """The pieces of a parameter; None where they are made in a way that is not known here.

    Args:
        filling: how it is made.
        shapes: of the saved tensors.
    """
    if not set(filling.operations) <= {"MergeModulelist", "Concatenate", "Transpose"}:
        return None
    turned = "Transpose" in filling.operations
    if len(filling.shape) < 2:
        return _whole(filling, shapes)
    *experts, high, wide = filling.shape
    if turned:
        if len(filling.names) > 1:
            return None
        high, wide = wide, high
    pieces: list[Piece] = []
    row = column = 0
    for names in filling.names:
        parts = [shapes[name] for name in names]
        rows, columns = parts[0][-2:] if len(parts[0]) >= 2 else (0, 0)
        one_by_one = bool(experts) and len(parts[0]) == 2
        wanted: Shape = (rows, columns) if one_by_one else (*experts, rows, columns)
        if any(part != wanted for part in parts) or len(names) != (experts[0] if one_by_one else 1):
            return None
        at = (row, row + rows), (column, column + columns)
        pieces += [
            Piece(name, e if one_by_one else None, *(at[::-1] if turned else at), turned)
            for e, name in enumerate(names)
        ]
        if columns == wide:
            row += rows
        elif rows == high:
            column += columns
        else:
            return None
    filled = (row, column) in {(high, 0), (0, wide)}
    return pieces if filled else None


def _whole(filling: Filling, shapes: Mapping[str, Shape]) -> list[Piece] | None:
    """The one piece of a vector."""
    names = [name for group in filling.names for name in group]
    if len(names) != 1 or shapes[names[0]] != filling.shape:
        return None
    size = filling.shape[0] if filling.shape else 1
    return [Piece(names[0], None, (0, size), (0, 1))]
