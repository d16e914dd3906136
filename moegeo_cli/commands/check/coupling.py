"""Finds, for each expert, the router row to which its first projection responds most strongly.

Legend: E experts, D width of the router's input.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np

from moegeo_cli.commands.check.reading import MoELayer, Piece
from moegeo_cli.geometry.coupling import squared_projected_norms

NAME = "coupling"
_LAST = re.compile(r"down|w2|out(?:put)?_|fc2|_bias|dense_4h_to_h|wo\b|c_proj")


class Coupling:
    """For each expert, the router row to which its first projection responds most strongly.

    `result` returns {"largest": E row numbers}. An entry is None if the first projection is not
    known: no matrix has a side of the router's width, both sides have it, or values are not finite.
    """

    name: ClassVar[str] = NAME
    version: ClassVar[int] = 1

    def __init__(self, layer: MoELayer) -> None:
        """Start with a layer."""
        self.rows_ED = layer.weight_ED
        self.reach: dict[int, np.ndarray] = {}
        self.unknown: set[int] = set()
        self.count = max(layer.experts, default=-1) + 1

    def add(self, piece: Piece) -> None:
        """Add one weight of one expert."""
        values, rows_ED = piece.values, self.rows_ED
        if values is None or values.ndim != 2 or rows_ED is None or _LAST.search(piece.role):
            return
        if not np.isfinite(rows_ED).all() or piece.expert in self.unknown:
            return
        width = rows_ED.shape[1]
        fits = [side for side in (0, 1) if values.shape[side] == width]
        if len(fits) != 1 or not np.isfinite(values).all():
            if fits:
                self.unknown.add(piece.expert)
            return
        reach_E = squared_projected_norms(values if fits == [1] else values.T, rows_ED)
        self.reach[piece.expert] = self.reach.get(piece.expert, 0.0) + reach_E

    def result(self) -> Any:
        """The number of the strongest row of each expert."""
        found: list[int | None] = [None] * self.count
        for expert, reach_E in self.reach.items():
            if expert not in self.unknown and reach_E.any():
                found[expert] = int(reach_E.argmax())
        return {"largest": found}
