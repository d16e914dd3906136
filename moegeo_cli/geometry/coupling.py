"""Whether an expert responds most to its own row of the router.

Legend: E experts, R rows and D columns of an expert's first projection, D width of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def row_reach(first_RD: np.ndarray, rows_ED: np.ndarray) -> np.ndarray:
    r"""Squared norm of each row of a router after an expert's first projection.

    Args:
        first_RD: the projection W, applied to an input x as W x.
        rows_ED: the router's rows r, unscaled.

    Returns:
        Shape (E,): ‖W r‖². Where the first projection is of several matrices, theirs add up.

    Source: arXiv 2512.23447, in which rows stand for the tokens that their experts are given.
    """
    through_ER = rows_ED.astype(np.float32) @ first_RD.astype(np.float32).T
    return np.asarray(np.square(through_ER, dtype=np.float64).sum(axis=1))


def own_row_share(largest: Sequence[int | None]) -> float | None:
    """Share of the experts that the router's own row for them passes through most strongly.

    Experts that are independent of the router have each row as their largest with the same chance
    where rows are alike: 1/E.

    Args:
        largest: of each expert, the row with the largest norm; None where it is not known.

    Returns:
        A share; None where nothing is known.
    """
    known = [(expert, row) for expert, row in enumerate(largest) if row is not None]
    return sum(expert == row for expert, row in known) / len(known) if known else None
