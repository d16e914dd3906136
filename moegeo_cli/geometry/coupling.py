"""Whether an expert responds most to its own row of the router.

Legend: E experts, R rows and D columns of an expert's first projection, D width of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def squared_projected_norms(first_RD: np.ndarray, rows_ED: np.ndarray) -> np.ndarray:
    r"""Squared norm ‖W r‖² of each router row r after an expert's first projection W.

    Args:
        first_RD: the projection W, applied to an input x as W x.
        rows_ED: the router's rows r, unscaled.

    Returns:
        Shape (E,). If the first projection has several matrices (gate and up), add their results.

    Source: arXiv 2512.23447, which uses a row as a stand-in for the tokens of its expert.
    """
    through_ER = rows_ED.astype(np.float32) @ first_RD.astype(np.float32).T
    return np.asarray(np.square(through_ER, dtype=np.float64).sum(axis=1))


def own_row_share(largest: Sequence[int | None]) -> float | None:
    """Share of experts whose own router row has the largest projected norm of all rows.

    The null is 1/E: experts that are independent of the router, and rows that are alike.

    Args:
        largest: for each expert, the row with the largest projected norm; None if not known.

    Returns:
        A share; None if no expert is known.
    """
    known = [(expert, row) for expert, row in enumerate(largest) if row is not None]
    return sum(expert == row for expert, row in known) / len(known) if known else None
