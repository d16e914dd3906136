"""What needs more than one checkpoint: scores against the baseline, and dynamics.

Legend: L routers, N baseline draws, M sampled tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moegeo_cli.geometry.dynamics import Snapshot, geodesic_excess, saturation, step_estimates
from moegeo_cli.geometry.estimates import over_routers
from moegeo_cli.geometry.heterogeneity import FHS_OF, fhs_estimates, heterogeneity_estimates
from moegeo_cli.geometry.resample import Draws, Estimate, make_draws, missing
from moegeo_cli.measurement.arrays import CheckpointArrays, RouterArrays
from moegeo_cli.measurement.layers import Kind, as_metrics
from moegeo_cli.measurement.run import Measured
from moegeo_cli.measurement.settings import Settings
from moegeo_cli.records import CheckpointRecord, LayerRecord, Metrics, RunRecord


def add_history(
    measured: Sequence[Measured],
    draws: Sequence[Measured],
    *,
    settings: Settings,
    reason: str | None,
    kind: str,
    step: int | None,
) -> RunRecord:
    """Put a run's checkpoints in relation to its baseline and to one another.

    Args:
        measured: the checkpoints, oldest first.
        draws: the baseline: one checkpoint, or several fresh initialisations; empty for none.
        settings: how all of them were measured.
        reason: why there is no baseline.
        kind: "checkpoint" or "init".
        step: of a baseline checkpoint.

    Returns:
        A run without what is known from files alone, and without a verdict.
    """
    resampled = make_draws(measured[-1].arrays.groups_S, settings.seed)
    records = tuple(_score(m, draws, settings, reason, resampled) for m in measured)
    baseline: dict[str, Any] = {
        "kind": kind if draws else None,
        "step": step if draws else None,
        "path": draws[0].record.path if draws and kind == "checkpoint" else None,
        "baseline_draws": len(draws),
        "reason": None if draws else reason or "no baseline",
    }
    return RunRecord(
        status="complete",
        versions={},
        run={},
        probe={},
        settings={},
        baseline=baseline,
        checkpoints=records,
        dynamics=tuple(_dynamics(measured, resampled)),
    )


def _score(
    measured: Measured,
    draws: Sequence[Measured],
    settings: Settings,
    reason: str | None,
    resampled: Draws,
) -> CheckpointRecord:
    """A checkpoint's record with its heterogeneity scores, of every kind."""
    routers = measured.arrays.routers
    paths = [r.path for r in routers]
    record, layers = measured.record, list(measured.record.layers)
    fisher = {k: {u: dict(m) for u, m in units.items()} for k, units in record.fisher.items()}
    top: Metrics = {}
    for kind in sorted({k for r in routers for k in r.fishers}):
        scores = score_routers(measured, draws, kind, reason, resampled)
        over = as_metrics(over_routers(scores, paths, tuple(FHS_OF)))
        fisher[kind[0]][kind[1]].update(over)
        named = kind == settings.named
        top = over if named else top
        for place, score in enumerate(scores):
            layers[place] = _with_scores(layers[place], kind, as_metrics(score), named=named)
    return dataclasses.replace(
        record, layers=tuple(layers), metrics={**record.metrics, **top}, fisher=fisher
    )


def score_routers(
    measured: Measured,
    draws: Sequence[Measured],
    kind: Kind,
    reason: str | None,
    resampled: Draws,
) -> list[dict[str, Estimate]]:
    """Heterogeneity scores of each router against the baseline draws.

    Args:
        measured: the checkpoint.
        draws: the baseline; empty for none.
        kind: Fisher kind and unit.
        reason: why there is no baseline.
        resampled: the probe's bootstrap draws.
    """
    routers = measured.arrays.routers
    if not draws:
        none = missing(reason or "no baseline")
        return [dict.fromkeys(FHS_OF, none) for _ in routers]
    now = [_forms(r, kind, resampled) for r in routers]
    bases = []
    for draw in draws:
        by_path = {r.path: r for r in draw.arrays.routers}
        bases.append(
            [_forms(by_path[r.path], kind, resampled) if r.path in by_path else {} for r in routers]
        )
    return fhs_estimates(now, bases, resampled)


def _forms(router: RouterArrays, kind: Kind, resampled: Draws) -> dict[str, Estimate]:
    if kind not in router.fishers:
        return {form: missing("this kind was not measured here") for form in FHS_OF.values()}
    return heterogeneity_estimates(router.fishers[kind], resampled)


def _with_scores(layer: LayerRecord, kind: Kind, scores: Metrics, *, named: bool) -> LayerRecord:
    fisher = {k: dict(units) for k, units in layer.fisher.items()}
    fisher[kind[0]][kind[1]] = {**fisher[kind[0]][kind[1]], **scores}
    metrics = {**layer.metrics, **scores} if named else layer.metrics
    return dataclasses.replace(layer, fisher=fisher, metrics=metrics)


def _dynamics(measured: Sequence[Measured], resampled: Draws) -> Iterator[dict[str, Any]]:
    """One entry for each pair of successive checkpoints."""
    snapshots = [_snapshots(m.arrays) for m in measured]
    for place in range(1, len(measured)):
        before, after = measured[place - 1].record, measured[place].record
        paths = [p for p in snapshots[place] if p in snapshots[place - 1]]
        found = []
        for path in paths:
            way = [s[path] for s in snapshots[: place + 1] if path in s]
            own = step_estimates(way[-2], way[-1], resampled)
            last = snapshots[-1].get(path)
            own["saturation"] = (
                saturation(way[-2], last, resampled) if last else missing("router not measured")
            )
            own["geodesic_excess"] = (
                geodesic_excess(way, resampled)
                if len(way) == place + 1
                else missing("router not measured at every checkpoint")
            )
            found.append(own)
        layers = {layer.router: layer.layer for layer in after.layers}
        yield {
            "from_step": before.step,
            "to_step": after.step,
            "from_path": before.path,
            "to_path": after.path,
            "geodesic_steps": [m.record.step for m in measured[: place + 1]],
            "metrics": as_metrics(over_routers(found, paths, tuple(found[0]))) if found else {},
            "layers": [
                {"layer": layers[path], "router": path, "metrics": as_metrics(own)}
                for path, own in zip(paths, found, strict=True)
            ],
        }


def _snapshots(arrays: CheckpointArrays) -> dict[str, Snapshot]:
    """Each router's sampled tokens, by module path."""
    found = {}
    rows_of: Callable[[np.ndarray], np.ndarray] = lambda rows: np.searchsorted(  # noqa: E731
        arrays.sample_rows, rows
    )
    for router in arrays.routers:
        ends_S = np.cumsum(router.sums.sequence_tokens)
        sequence_M = np.searchsorted(ends_S, arrays.sample_rows, side="right")
        found[router.path] = Snapshot(
            logits_ME=router.sample_logits_ME,
            selected_MK=router.sample_selected_MK,
            group_M=arrays.groups_S[sequence_M],
            scoring=router.scoring,
            weight_ED=router.weight_ED,
            bias_E=router.bias_E,
            x_ND=router.sample_x_ND,
            input_rows_N=rows_of(arrays.input_rows) if router.sample_x_ND is not None else None,
            dtype=str(arrays.replay.get("dtype", "float32")),
            top_k=router.top_k,
        )
    return found
