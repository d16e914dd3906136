"""The metric bias_spread: the range of a router's selection bias."""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.resample import Estimate, missing
from moegeo_cli.measuring.arrays import RouterArrays


def estimate(router: RouterArrays) -> Estimate:
    """Largest minus smallest selection bias of the experts that can be chosen.

    It does not depend on the probe, so it has no draws.
    """
    if router.selection_bias_E is None:
        return missing("the router has no selection bias")
    bias_E = np.delete(router.selection_bias_E, router.off)
    if not np.isfinite(bias_E).all():
        return missing("the selection bias is not finite")
    return Estimate(float(bias_E.max() - bias_E.min()), n=len(bias_E))
