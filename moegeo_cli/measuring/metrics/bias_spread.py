"""How far apart the selection biases of a router are."""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.resample import Estimate, missing
from moegeo_cli.measuring.arrays import RouterArrays


def estimate(router: RouterArrays) -> Estimate:
    """Largest minus smallest entry, of experts that can be chosen; it needs no probe, so no draws.

    The bias is the one that acts on the selection alone.
    """
    if router.selection_bias_E is None:
        return missing("the router has no selection bias")
    bias_E = np.delete(router.selection_bias_E, router.off)
    if not np.isfinite(bias_E).all():
        return missing("the selection bias is not finite")
    return Estimate(float(bias_E.max() - bias_E.min()), n=len(bias_E))
