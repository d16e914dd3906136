"""The baseline of heterogeneity scores: one checkpoint, or several fresh initialisations."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.geometry.baseline_scores import FHS_OF, fhs_estimates
from moegeo_cli.geometry.heterogeneity import heterogeneity_estimates
from moegeo_cli.geometry.resample import Draws, Estimate, missing
from moegeo_cli.measuring.arrays import CheckpointArrays, RouterArrays
from moegeo_cli.measuring.layers import Kind
from moegeo_cli.measuring.run import Measured

Forms = dict[str, Estimate]


class Baseline:
    """The heterogeneity of every router at the baseline, computed once per run.

    Args:
        draws: one checkpoint, or one measurement per initialisation; empty for no baseline.
        resampled: the probe's bootstrap draws.
        reason: why there is no baseline.
    """

    def __init__(
        self, draws: Sequence[Measured], resampled: Draws, reason: str | None = None
    ) -> None:
        self.draws, self.resampled, self.reason = draws, resampled, reason
        self._forms: list[dict[tuple[str, Kind], Forms]] | None = None

    def scores(self, arrays: CheckpointArrays, kind: Kind) -> list[Forms]:
        """Heterogeneity scores (FHS) of each router of a checkpoint.

        Args:
            arrays: the checkpoint.
            kind: Fisher kind and unit.

        Returns:
            For each router, in the order of `arrays.routers`: an estimate per form of the score.
        """
        if not self.draws:
            none = missing(self.reason or "no baseline")
            return [dict.fromkeys(FHS_OF, none) for _ in arrays.routers]
        if self._forms is None:
            self._forms = [
                {(r.path, k): _forms(r, k, self.resampled) for r in d.routers for k in r.fishers}
                for d in (draw.arrays for draw in self.draws)
            ]
        now = [_forms(router, kind, self.resampled) for router in arrays.routers]
        bases = [[forms.get((r.path, kind), {}) for r in arrays.routers] for forms in self._forms]
        return fhs_estimates(now, bases, self.resampled)


def _forms(router: RouterArrays, kind: Kind, resampled: Draws) -> Forms:
    if kind not in router.fishers:
        return {
            form: missing("this kind of Fisher was not measured here") for form in FHS_OF.values()
        }
    return heterogeneity_estimates(router.selectable_fisher(kind), resampled)
