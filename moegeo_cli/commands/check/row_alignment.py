"""How random the directions of an expert's rows are, which tells whether it was trained.

Legend: E experts.
"""

from __future__ import annotations

from typing import Any, ClassVar

from moegeo_cli.commands.check.reading import MoELayer, Piece
from moegeo_cli.geometry.fresh import pool, row_alignment

NAME = "row_alignment"


class RowAlignment:
    """How far the rows of each expert's matrices are from random directions.

    `result` gives {"expert": E numbers}: the scores of an expert's matrices pooled, in standard
    deviations; None where a matrix has no finite values.
    """

    name: ClassVar[str] = NAME
    version: ClassVar[int] = 1

    def __init__(self, layer: MoELayer) -> None:
        """Begin with a layer."""
        self.scores: dict[int, list[float | None]] = {expert: [] for expert in layer.experts}

    def add(self, piece: Piece) -> None:
        """Take one weight of one expert."""
        if piece.values is not None and piece.values.ndim == 2:
            self.scores[piece.expert].append(row_alignment(piece.values))

    def result(self) -> Any:
        """The pooled score of each expert."""
        found: list[float | None] = []
        for expert in range(max(self.scores, default=-1) + 1):
            own = self.scores.get(expert, [])
            known = [score for score in own if score is not None]
            found.append(pool(known) if len(known) == len(own) else None)
        return {"expert": found}
