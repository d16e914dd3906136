"""Matches the checkpoints of two runs by progress, and computes differences with intervals.

Both checkpoints of a pair are resampled with the same draws, so the variation between sequences
cancels in the difference.

Legend: B draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.errors import ComparisonError, UsageError
from moegeo_cli.geometry.baseline_scores import FHS_OF
from moegeo_cli.geometry.estimates import over_routers
from moegeo_cli.geometry.resample import Estimate, difference, missing
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.layers import (
    FISHER_NAMES,
    estimate_checkpoint,
)
from moegeo_cli.measuring.run import Measured, Progress
from moegeo_cli.records import CheckpointRecord, Metric
from moegeo_cli.records.comparison import (
    Difference,
    LayerPair,
    MatchedPair,
    ProgressAxis,
    Side,
    Unmatched,
)
from moegeo_cli.settings import Settings

TOLERANCE = 0.02
AXES: tuple[ProgressAxis, ...] = ("tokens", "step", "fraction")
NEWEST: ProgressAxis = "newest"
# Metrics that are comparable only between models with the same scoring.
WITHIN_SCORING = {
    "fsi", "dispersion", "entropy_token", "collapse_soft", "information", "margin", "logit_z",
    "logit_max",
}  # fmt: skip


def choose_axis(runs: Iterable[Sequence[tuple[str, Progress]]], wanted: str | None) -> ProgressAxis:
    """Choose the measure of progress by which checkpoints are matched.

    If one run is a single checkpoint that records no progress, it is matched with the newest
    checkpoint of the other run: for example a base model and its fine-tuned version.

    Args:
        runs: path and progress of each checkpoint of both runs.
        wanted: the requested axis; None for the first of tokens, step and fraction that all
            checkpoints record.

    Raises:
        UsageError: there is no such axis.
        ComparisonError: a checkpoint does not record the requested axis, or the runs have no axis
            in common.
    """
    requested = [axis for axis in AXES if axis == wanted]
    if wanted is not None and not requested:
        raise UsageError(f"--by is not one of {', '.join(AXES)}", found=repr(wanted)[:80])
    both = list(runs)
    known = [found for run in both for found in run]
    for axis in requested or AXES:
        lacking = [path for path, progress in known if progress.get(axis) is None]
        if not lacking:
            return axis
        if wanted:
            raise ComparisonError(
                f"cannot match by {wanted}",
                found=f"not recorded in {lacking[0]}",
                hint="choose another --by: tokens, step or fraction",
            )
    if any(len(run) == 1 for run in both):
        return NEWEST
    raise ComparisonError(
        "the runs have no progress in common",
        found="not all checkpoints record tokens, step or fraction of training",
        hint="rename the folders of checkpoints to checkpoint-STEP",
    )


def match_progress(
    a: Sequence[CheckpointRecord], b: Sequence[CheckpointRecord], axis: str
) -> tuple[list[tuple[CheckpointRecord, CheckpointRecord]], list[Unmatched]]:
    """Match checkpoints whose progress differs by at most 2%, nearest first.

    Each checkpoint is used once. Nothing is interpolated.

    Args:
        a: checkpoints of the first run.
        b: checkpoints of the second run.
        axis: "tokens", "step" or "fraction"; or "newest" to match only the newest of each.

    Returns:
        The pairs in order of progress, and the checkpoints without a match.
    """
    if axis == NEWEST:
        candidates = [(0.0, len(a) - 1, len(b) - 1)]
    else:
        candidates = sorted(
            (gap, i, j)
            for i, one in enumerate(a)
            for j, other in enumerate(b)
            if (gap := _gap(_progress(one, axis), _progress(other, axis))) <= TOLERANCE
        )
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    pairs = []
    for _, i, j in candidates:
        if i not in taken_a and j not in taken_b:
            taken_a.add(i)
            taken_b.add(j)
            pairs.append((i, j))
    reason = f"the other run has no checkpoint within {TOLERANCE:.0%} of it"
    if axis == NEWEST:
        reason = "only the newest checkpoint of each run is compared"
    sides: tuple[tuple[Side, Sequence[CheckpointRecord], set[int]], ...] = (
        ("a", a, taken_a), ("b", b, taken_b),
    )  # fmt: skip
    unmatched = [
        Unmatched(run, record.step, _progress_or_none(record, axis), reason)
        for run, records, taken in sides
        for place, record in enumerate(records)
        if place not in taken
    ]
    return [(a[i], b[j]) for i, j in sorted(pairs)], unmatched


def compare_losses(a: Measured, b: Measured, settings: Settings) -> Metric:
    """Loss of b minus loss of a, in nats per token, paired by sequence."""
    one, other = (estimate_checkpoint(m.arrays, settings).loss for m in (a, b))
    return difference(other, one).metric("loss")


def compare_checkpoints(
    a: Measured,
    b: Measured,
    bases: tuple[Baseline, Baseline],
    settings: Settings,
    axis: str,
    *,
    paired: bool,
) -> MatchedPair:
    """All differences between two checkpoints, b minus a.

    Args:
        a: checkpoint of the first run.
        b: checkpoint of the second run.
        bases: the baselines of both runs.
        settings: how both were measured.
        axis: the measure of progress.
        paired: whether both were measured on the same probe; if not, differences have no interval.
    """
    sides = tuple(_Side(m.arrays, base, settings) for m, base in zip((a, b), bases, strict=True))
    scorings = sides[0].scorings | sides[1].scorings
    one, other = (s.over_routers() for s in sides)
    layers = []
    places = [_places(m.record) for m in (a, b)]
    for key in sorted(places[0].keys() & places[1].keys()):
        i, j = places[0][key], places[1][key]
        found = _differences(sides[0].routers[i], sides[1].routers[j], scorings, paired=paired)
        layers.append(LayerPair(key[0], a.record.layers[i].router, found))
    return MatchedPair(
        progress_a=_progress_or_none(a.record, axis),
        progress_b=_progress_or_none(b.record, axis),
        step_a=a.record.step,
        step_b=b.record.step,
        differences=_differences(one, other, scorings, paired=paired),
        layers=tuple(layers),
    )


def _places(record: CheckpointRecord) -> dict[tuple[int, int], int]:
    """Position of each router in the record, by (layer, number among the layer's routers)."""
    found: dict[tuple[int, int], int] = {}
    for place, layer in enumerate(record.layers):
        number = sum(1 for known, _ in found if known == layer.layer)
        found[layer.layer, number] = place
    return found


class _Side:
    """The estimates of one checkpoint: of each router with its scores, and over all routers."""

    def __init__(self, arrays: CheckpointArrays, base: Baseline, settings: Settings) -> None:
        found, kind = estimate_checkpoint(arrays, settings), settings.named
        self.scorings = {router.scoring for router in arrays.routers}
        scores: list[dict[str, Estimate]] = [{} for _ in found.paths]
        fishers: Sequence[Mapping[str, Estimate]] = scores
        if kind in found.fishers:
            fishers = found.fishers[kind]
            scores = base.scores(arrays, kind)
        self.paths, self.loss = found.paths, found.loss
        self.routers: list[dict[str, Estimate]] = [
            {**routing, **fisher, **score}
            for routing, fisher, score in zip(found.routing, fishers, scores, strict=True)
        ]
        self.names = (*found.routing[0], *FISHER_NAMES, *FHS_OF) if found.routing else ()

    def over_routers(self) -> dict[str, Estimate]:
        """Estimates over all routers, and the loss."""
        return {"loss": self.loss, **over_routers(self.routers, self.paths, self.names)}


def _differences(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], scorings: set[str], *, paired: bool
) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for name in a:
        if name not in b:
            continue
        gap = difference(b[name], a[name])
        if len(scorings) > 1 and name.removesuffix("_worst") in WITHIN_SCORING:
            gap = missing(f"not comparable across scorings: {', '.join(sorted(scorings))}")
        elif not paired and gap.value is not None:
            gap = Estimate(gap.value, n=gap.n, reason="not paired: the probes differ")
        if a[name].unit == b[name].unit:
            gap = dataclasses.replace(gap, unit=a[name].unit)
        found[name] = Difference(a[name].metric(name), b[name].metric(name), gap.metric(name))
    return found


def _progress_or_none(record: CheckpointRecord, axis: str) -> float | None:
    return None if axis == NEWEST else _progress(record, axis)


def _progress(record: CheckpointRecord, axis: str) -> float:
    return float(record.progress[axis] or 0.0)


def _gap(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
