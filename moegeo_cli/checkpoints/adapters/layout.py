"""Map a parameter of the model to the stored tensors that it is made of, piece by piece.

An adapter changes parameters of the model. Files may keep a parameter under another name, or in
several tensors (separate experts, separate projections). `merging` adds to each stored tensor the
piece of the change that belongs to it.

Legend: E experts, R rows, C columns of a parameter's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moegeo_cli.checkpoints.weights import WeightIndex

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """How one parameter of the model is made of stored tensors.

    Attributes:
        shape: the parameter's shape.
        names: the stored tensors, in groups. Tensors of one group are stacked as experts.
        operations: the operations on them, by transformers' names.
        transposed: whether experts' matrices are stored (inputs, outputs).
    """

    shape: Shape
    names: tuple[tuple[str, ...], ...]
    operations: tuple[str, ...] = ()
    transposed: bool = False


# Stored tensors -> (parameter -> how it is made of them), in the model's order.
Tracer = Callable[[WeightIndex], Mapping[str, ParameterSource]]


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a parameter that one stored tensor holds.

    Attributes:
        name: name of the stored tensor.
        expert: index along the parameter's first dimension; None for all experts.
        rows: (start, stop) of its rows within the parameter's matrix.
        columns: (start, stop) of its columns.
        transposed: whether the stored matrix is the parameter's transposed.
    """

    name: str
    expert: int | None
    rows: tuple[int, int]
    columns: tuple[int, int]
    transposed: bool = False


def cut_parameter(source: ParameterSource, shapes: Mapping[str, Shape]) -> list[Piece] | None:
    """Cut a parameter into the pieces that its stored tensors hold.

    Args:
        source: how the parameter is made.
        shapes: shapes of the stored tensors.

    Returns:
        The pieces; None where the parameter is made by an operation that is not known here.
    """
    if not set(source.operations) <= {"MergeModulelist", "Concatenate", "Transpose"}:
        return None
    transposed = "Transpose" in source.operations
    if len(source.shape) < 2:
        return _cut_vector(source, shapes)
    *experts, high, wide = source.shape
    if transposed:
        if len(source.names) > 1:
            return None
        high, wide = wide, high
    pieces: list[Piece] = []
    row = column = 0
    for names in source.names:
        parts = [shapes[name] for name in names]
        rows, columns = parts[0][-2:] if len(parts[0]) >= 2 else (0, 0)
        one_by_one = bool(experts) and len(parts[0]) == 2
        wanted: Shape = (rows, columns) if one_by_one else (*experts, rows, columns)
        if any(part != wanted for part in parts) or len(names) != (experts[0] if one_by_one else 1):
            return None
        at = (row, row + rows), (column, column + columns)
        pieces += [
            Piece(name, e if one_by_one else None, *(at[::-1] if transposed else at), transposed)
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


def _cut_vector(source: ParameterSource, shapes: Mapping[str, Shape]) -> list[Piece] | None:
    """The single piece of a vector; None where it is made of several tensors."""
    names = [name for group in source.names for name in group]
    if len(names) != 1 or shapes[names[0]] != source.shape:
        return None
    size = source.shape[0] if source.shape else 1
    return [Piece(names[0], None, (0, size), (0, 1))]
