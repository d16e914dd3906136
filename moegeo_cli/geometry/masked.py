"""Find experts that are switched off on purpose, by a router row or by a bias.

Legend: E experts, D width of the router's input.
"""

from __future__ import annotations

import numpy as np

# Training does not produce a bias this far under the median, or a row this many times as long as
# the median.
MASK_BIAS, MASK_ROW = 100.0, 1e4


def find_masked(
    weight_ED: np.ndarray | None, bias_E: np.ndarray | None, selection_bias_E: np.ndarray | None
) -> tuple[int, ...]:
    """Experts that the weights of a router switch off.

    Args:
        weight_ED: the router's rows; None if not known.
        bias_E: bias of the logits; None without one.
        selection_bias_E: bias of the selection only; None without one.

    Returns:
        Numbers of the experts with a bias of −infinity, a bias `MASK_BIAS` or more under the
        median, or a row over `MASK_ROW` times the median norm. A long row lowers the logit for some
        inputs and raises it for others, so the load must show whether the expert is really off.
    """
    masked = {*_by_bias(bias_E), *_by_bias(selection_bias_E)}
    if weight_ED is not None and len(weight_ED) > 1:
        finite_E = np.isfinite(weight_ED).all(axis=1)
        norms_E = np.zeros(len(weight_ED))
        norms_E[finite_E] = np.linalg.norm(weight_ED[finite_E].astype(np.float64), axis=1)
        used_E = norms_E > 0.0
        if used_E.any():
            masked |= set(_places(norms_E > MASK_ROW * np.median(norms_E[used_E])))
    return tuple(sorted(masked))


def _by_bias(bias_E: np.ndarray | None) -> list[int]:
    if bias_E is None:
        return []
    finite = bias_E[np.isfinite(bias_E)]
    typical = float(np.median(finite)) if finite.size else 0.0
    return _places((bias_E == -np.inf) | (typical - bias_E >= MASK_BIAS))


def _places(flags: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(flags)]
