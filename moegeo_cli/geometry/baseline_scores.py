r"""The Fisher Heterogeneity Score: heterogeneity over its value at the baseline.

Legend: B draws, N baseline draws, L routers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, missing, ratio

FHS_OF = {
    "fhs": "heterogeneity",
    "fhs_relative": "heterogeneity_relative",
    "fhs_trace": "heterogeneity_trace",
    "fhs_conditional": "heterogeneity_conditional",
}


def fhs_estimates(
    now: Sequence[Mapping[str, Estimate]],
    bases: Sequence[Sequence[Mapping[str, Estimate]]],
    draws: Draws,
) -> list[dict[str, Estimate]]:
    """FHS: heterogeneity of each router over its value at the baseline.

    Args:
        now: the heterogeneity estimates of each router.
        bases: the heterogeneity estimates of each router, for each baseline draw (several draws
            are fresh initialisations).
        draws: the bootstrap draws, shared by all estimates.

    Returns:
        For each router, estimates by catalogue name (a ratio, without unit). With several baseline
        draws the base is their geometric mean, and the interval includes their spread of ln H(0).

    Source: [GM]'s Fisher Heterogeneity Score H(t)/H(0); estimator ours.
    """
    found: list[dict[str, Estimate]] = [{} for _ in now]
    for name, form in FHS_OF.items():
        column = [[base[place].get(form) for base in bases] for place in range(len(now))]
        noise_BL = None
        if len(bases) > 1 and len(draws.counts_BG) and _all_positive(column):
            values_LN = [[e.value for e in router if e and e.value] for router in column]
            logs_NL = np.log(np.array(values_LN)).T
            noise_BL = draws.predict_noise(logs_NL - logs_NL.mean(axis=0))
        for place, router in enumerate(now):
            noise_B = None if noise_BL is None else noise_BL[:, place]
            found[place][name] = _score(router[form], column[place], noise_B)
    return found


def _all_positive(column: list[list[Estimate | None]]) -> bool:
    return all(e is not None and e.value and e.value > 0 for router in column for e in router)


def _score(now: Estimate, bases: Sequence[Estimate | None], noise_B: np.ndarray | None) -> Estimate:
    known = [b for b in bases if b is not None and b.value is not None]
    if len(known) < len(bases) or not known:
        why = next((b.reason for b in bases if b is not None and b.reason), None)
        return missing(f"the baseline has no value: {why or 'router not measured'}", now.n)
    if any(b.value == 0 for b in known):
        return missing("the baseline's heterogeneity is zero", now.n)
    null = [float(b.null_B.mean()) for b in known if b.null_B is not None]
    values = np.array([b.value for b in known])
    if null and np.exp(np.log(values).mean()) <= np.mean(null):
        return missing("the baseline's heterogeneity is not above its sampling noise",
                       now.n)  # fmt: skip
    draws = [b.draws_B for b in known if b.draws_B is not None]
    base_B = None
    if len(draws) == len(known):
        with np.errstate(divide="ignore", invalid="ignore"):
            base_B = np.exp(np.mean([np.log(d) for d in draws], axis=0))
        if noise_B is not None:
            base_B = base_B * np.exp(noise_B)
    base = Estimate(float(np.exp(np.log(values).mean())), base_B)
    score = ratio(now, base)
    return replace(score, reason=score.reason or now.reason)
