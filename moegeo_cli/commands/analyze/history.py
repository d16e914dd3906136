"""Numbers that need more than one checkpoint: scores against the baseline, and dynamics.

Legend: L routers, N baseline draws, M sampled tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.geometry.baseline_scores import FHS_OF
from moegeo_cli.geometry.dynamics import (
    PathLength,
    Snapshot,
    bias_response,
    saturation,
    step_estimates,
)
from moegeo_cli.geometry.estimates import over_routers
from moegeo_cli.geometry.resample import Draws, make_draws, missing
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.layers import Kind, as_metrics
from moegeo_cli.measuring.run import Measured
from moegeo_cli.records import CheckpointRecord, LayerRecord, Metrics, RunRecord
from moegeo_cli.records.facts import BaselineFacts, Move, Unchanged
from moegeo_cli.settings import Settings


def add_history(
    measured: Sequence[Measured],
    draws: Sequence[Measured],
    *,
    settings: Settings,
    reason: str | None,
    kind: Literal["checkpoint", "init"],
    step: int | None,
) -> RunRecord:
    """Compare a run's checkpoints with the baseline and with one another.

    Args:
        measured: the checkpoints, oldest first.
        draws: the baseline: one checkpoint, or several fresh initialisations; empty for none.
        settings: how all of them were measured.
        reason: why there is no baseline.
        kind: "checkpoint" or "init".
        step: the baseline checkpoint's step.

    Returns:
        A record with scores and dynamics. `fill_facts` fills in the other fields, `judge` the
        verdict.
    """
    resampled = make_draws(measured[-1].arrays.groups_S, settings.seed)
    base = Baseline(draws, resampled, reason)
    trail = _Trail(_snapshots(measured[-1].arrays), resampled)
    records: list[CheckpointRecord] = []
    dynamics: list[Move] = []
    for checkpoint in measured:  # one at a time: the arrays of a whole run may not fit in memory
        arrays = checkpoint.arrays
        records.append(_score(checkpoint.record, arrays, base, settings))
        dynamics += trail.add_checkpoint(checkpoint.record, _snapshots(arrays))
    baseline: BaselineFacts = {
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
        checkpoints=tuple(records),
        dynamics=tuple(dynamics),
    )


def _score(
    record: CheckpointRecord, arrays: CheckpointArrays, base: Baseline, settings: Settings
) -> CheckpointRecord:
    """A checkpoint's record with heterogeneity scores for every kind of Fisher."""
    paths = [r.path for r in arrays.routers]
    layers = list(record.layers)
    fisher = {k: {u: dict(m) for u, m in units.items()} for k, units in record.fisher.items()}
    top: Metrics = {}
    for kind in sorted({k for r in arrays.routers for k in r.fishers} | {settings.named}):
        scores = base.scores(arrays, kind)
        over = as_metrics(over_routers(scores, paths, tuple(FHS_OF)))
        fisher[kind[0]][kind[1]].update(over)
        named = kind == settings.named
        top = over if named else top
        for place, score in enumerate(scores):
            layers[place] = _with_scores(layers[place], kind, as_metrics(score), named=named)
    return dataclasses.replace(
        record, layers=tuple(layers), metrics={**record.metrics, **top}, fisher=fisher
    )


def _with_scores(layer: LayerRecord, kind: Kind, scores: Metrics, *, named: bool) -> LayerRecord:
    fisher = {k: dict(units) for k, units in layer.fisher.items()}
    fisher[kind[0]][kind[1]] = {**fisher[kind[0]][kind[1]], **scores}
    metrics = {**layer.metrics, **scores} if named else layer.metrics
    return dataclasses.replace(layer, fisher=fisher, metrics=metrics)


class _Trail:
    """Compares successive checkpoints, router by router.

    Args:
        last: snapshots of the run's last checkpoint, by router.
        resampled: the probe's bootstrap draws.
    """

    def __init__(self, last: dict[str, Snapshot], resampled: Draws) -> None:
        self.last, self.resampled = last, resampled
        self.lengths: dict[str, PathLength] = {}
        self.steps: list[int | None] = []
        self.before: tuple[CheckpointRecord, dict[str, Snapshot]] | None = None

    def add_checkpoint(self, record: CheckpointRecord, now: dict[str, Snapshot]) -> list[Move]:
        """Add the next checkpoint. Returns a list with the move to it; empty for the first."""
        self.steps.append(record.step)
        for path, snapshot in now.items():
            self.lengths.setdefault(path, PathLength()).add_checkpoint(snapshot)
        moves = [] if self.before is None else [self._move(*self.before, record, now)]
        self.before = (record, now)
        return moves

    def _move(
        self,
        before: CheckpointRecord,
        earlier: dict[str, Snapshot],
        after: CheckpointRecord,
        later: dict[str, Snapshot],
    ) -> Move:
        paths = [path for path in later if path in earlier]
        found = []
        for path in paths:
            own = step_estimates(earlier[path], later[path], self.resampled)
            last, length = self.last.get(path), self.lengths[path]
            own["saturation"] = (
                saturation(earlier[path], last, self.resampled)
                if last
                else missing("router not measured")
            )
            own["geodesic_excess"] = (
                length.excess(self.resampled)
                if length.checkpoints == len(self.steps)
                else missing("router not measured at every checkpoint")
            )
            own["bias_response"] = bias_response(earlier[path], later[path])
            found.append(own)
        layers = {layer.router: layer.layer for layer in after.layers}
        return {
            "from_step": before.step,
            "to_step": after.step,
            "from_path": before.path,
            "to_path": after.path,
            "geodesic_steps": list(self.steps),
            "metrics": as_metrics(over_routers(found, paths, tuple(found[0]))) if found else {},
            "layers": [
                {
                    "layer": layers[path],
                    "router": path,
                    "metrics": as_metrics(own),
                    **_unchanged(earlier[path], later[path]),
                }
                for path, own in zip(paths, found, strict=True)
            ],
        }


def _snapshots(arrays: CheckpointArrays) -> dict[str, Snapshot]:
    """Each router's sampled tokens, by module path. Hash routers are left out."""
    found = {}
    for router in arrays.routers:
        if router.sums.hashed:
            continue  # a hash router's choices depend on token ids alone and never change
        rows, inputs = router.sample_rows, router.input_rows
        if rows is None or inputs is None:
            rows, inputs = arrays.sample_rows, arrays.input_rows
        ends_S = np.cumsum(router.sums.sequence_tokens)
        sequence_M = np.searchsorted(ends_S, rows, side="right")
        found[router.path] = Snapshot(
            logits_ME=router.sample_logits_ME,
            selected_MK=router.sample_selected_MK,
            group_M=arrays.groups_S[sequence_M],
            scoring=router.scoring,
            weight_ED=router.weight_ED,
            bias_E=router.bias_E,
            x_ND=router.sample_x_ND,
            input_rows_N=None if router.sample_x_ND is None else np.searchsorted(rows, inputs),
            dtype=str(arrays.replay.get("dtype", "float32")),
            top_k=router.top_k,
            selection_bias_E=router.selection_bias_E,
        )
    return found


def _unchanged(before: Snapshot, after: Snapshot) -> Unchanged:
    own, other = before.selection_bias_E, after.selection_bias_E
    equal = None if own is None or other is None else bool(np.array_equal(own, other))
    return {
        "weights_equal": bool(np.array_equal(before.weight_ED, after.weight_ED)),
        "bias_equal": equal,
        "logits_equal": bool(np.array_equal(before.logits_ME, after.logits_ME)),
    }
