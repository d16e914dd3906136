"""The metric router_cosine: the similarity of a router's rows."""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.geometry.resample import Estimate, missing
from moegeo_cli.measuring.arrays import RouterArrays


def estimate(router: RouterArrays) -> Estimate:
    """Mean absolute cosine between the rows of experts that can be chosen.

    It does not depend on the probe, so it has no draws.
    """
    if router.sums.hashed:
        return missing(HASHED)
    return mean_absolute_cosine(np.delete(router.weight_ED, router.off, axis=0))


def mean_absolute_cosine(weight_ED: np.ndarray) -> Estimate:
    """Mean absolute cosine between the rows of a matrix.

    Args:
        weight_ED: a router's rows.

    Returns:
        Missing with a reason if a row is zero or not finite, or if there is only one row.
    """
    if not np.isfinite(weight_ED).all():
        return missing("the router's weights are not finite")
    norms_E = np.linalg.norm(weight_ED.astype(np.float64), axis=1)
    if len(norms_E) < 2 or not norms_E.all():
        return missing(
            "a row of the router is zero" if len(norms_E) > 1 else "the router has only one row"
        )
    rows_ED = weight_ED / norms_E[:, None]
    cosine_EE = np.abs(rows_ED @ rows_ED.T)
    return Estimate(float(cosine_EE[np.triu_indices(len(norms_E), 1)].mean()), n=len(norms_E))
