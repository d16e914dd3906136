"""Measures how random the directions of an expert's rows are: an untrained expert's are random.

Legend: E experts.
"""

from __future__ import annotations

from typing import Any, ClassVar

from moegeo_cli.commands.check.reading import MoELayer, Piece
from moegeo_cli.geometry.fresh import combine_scores, row_alignment

NAME = "row_alignment"


class RowAlignment:
    """How far the rows of each expert's matrices are from random directions.

    `result` returns {"expert": E numbers}: for each expert, the pooled score of its matrices, in
    standard deviations of the score of random matrices; None if a matrix has no score.
    """

    name: ClassVar[str] = NAME
    version: ClassVar[int] = 1

    def __init__(self, layer: MoELayer) -> None:
        """Start with a layer."""
        self.scores: dict[int, list[float | None]] = {expert: [] for expert in layer.experts}

    def add(self, piece: Piece) -> None:
        """Add one weight of one expert."""
        if piece.values is not None and piece.values.ndim == 2:
            self.scores[piece.expert].append(row_alignment(piece.values))

    def result(self) -> Any:
        """The pooled score of each expert."""
        found: list[float | None] = []
        for expert in range(max(self.scores, default=-1) + 1):
            own = self.scores.get(expert, [])
            known = [score for score in own if score is not None]
            found.append(combine_scores(known) if len(known) == len(own) else None)
        return {"expert": found}
