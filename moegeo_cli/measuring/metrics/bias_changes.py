"""The metric bias_changes: choices that depend on the rounding of the stored selection bias."""

from __future__ import annotations

from moegeo_cli.geometry.resample import Estimate, missing
from moegeo_cli.measuring.arrays import RouterArrays


def estimate(router: RouterArrays) -> Estimate:
    """Share of sampled tokens whose choice the rounding of the selection bias may change.

    It has no draws, so no interval.
    """
    if router.selection_bias_E is None:
        return missing("the router has no selection bias")
    if router.bias_changes is None:
        return missing("the selection bias is the same for all experts, or choices are not known")
    return Estimate(router.bias_changes)
