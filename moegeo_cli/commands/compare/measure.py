"""Compares two measured runs: what is comparable, how they differ, which is healthier and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.commands.analyze.analysis import Analysis
from moegeo_cli.commands.analyze.architectures import choice_differences
from moegeo_cli.commands.analyze.facts import training_progress
from moegeo_cli.commands.compare.pairing import (
    choose_axis,
    compare_checkpoints,
    compare_losses,
    match_progress,
)
from moegeo_cli.errors import ComparisonError
from moegeo_cli.measuring.run import Progress
from moegeo_cli.records import CheckpointRecord, Metric, RunRecord
from moegeo_cli.records.comparison import (
    ComparisonRecord,
    MatchedPair,
    RunSummary,
    SharedBytes,
    Side,
)
from moegeo_cli.settings import Settings

RANKS = {"healthy": 0, "watch": 1, "failing": 2}


def pair_losses(run: Analysis, reference: Analysis, settings: Settings) -> dict[str, Metric]:
    """Loss of each checkpoint minus the reference's loss at the same progress.

    Args:
        run: the run that is judged.
        reference: the healthy run.
        settings: how both were measured.

    Returns:
        Differences in nats per token, paired by sequence, by the checkpoint's path in the run.
        Checkpoints without a match are left out. Empty if the runs were measured on different
        probes.
    """
    if run.record.probe["sha256"] != reference.record.probe["sha256"]:
        return {}
    ours, theirs = run.record.checkpoints, reference.record.checkpoints
    try:
        axis = choose_axis(_recorded(ours, theirs), None)
    except ComparisonError:
        return {}
    pairs, _ = match_progress(ours, theirs, axis)
    return {
        own.path: compare_losses(reference.measured(other.path), run.measured(own.path), settings)
        for own, other in pairs
    }


def compare_runs(
    a: Analysis,
    b: Analysis,
    judged: tuple[RunRecord, RunRecord],
    settings: Settings,
    *,
    by: str | None,
    force: bool,
    shared: Callable[[str, str], SharedBytes | None],
) -> ComparisonRecord:
    """Match two measured runs and compare them.

    Args:
        a: the first measured run.
        b: the second measured run.
        judged: the records of both, with verdicts.
        settings: how both were measured.
        by: "tokens", "step" or "fraction"; None for the first of these that both record.
        force: compare even if probe or estimator differ.
        shared: returns which tensors two checkpoints have in common, given their paths.

    Raises:
        ComparisonError: different probes or estimators, or no progress in common.
    """
    ours, theirs = a.measurement.architecture, b.measurement.architecture
    notes = choice_differences(ours, theirs) + _check_comparable(judged, force=force)
    paired = judged[0].probe["sha256"] == judged[1].probe["sha256"]
    axis = choose_axis(_recorded(a.record.checkpoints, b.record.checkpoints), by)
    matched, unmatched = match_progress(a.record.checkpoints, b.record.checkpoints, axis)
    if not matched:
        notes.append(
            f"no checkpoint of one run is within 2% of a checkpoint of the other in {axis}"
        )
    bases = (a.baseline(), b.baseline())
    pairs = tuple(
        dataclasses.replace(
            compare_checkpoints(
                a.measured(one.path), b.measured(other.path), bases, settings, axis, paired=paired
            ),
            shared=shared(one.path, other.path),
        )
        for one, other in matched
    )
    healthier, reason = _choose_healthier(judged, pairs)
    return ComparisonRecord(
        versions=judged[0].versions,
        run_a=_summary(judged[0]),
        run_b=_summary(judged[1]),
        matched_by=axis,
        pairs=pairs,
        healthier=healthier,
        reason=reason,
        unmatched=tuple(unmatched),
        notes=tuple(notes),
        probe=judged[0].probe,
        settings=judged[0].settings,
    )


def check_axis(runs: Iterable[RunFolder], by: str | None) -> None:
    """Check, before measuring, that the runs' checkpoints can be matched by progress.

    Args:
        runs: both runs.
        by: the requested axis; None for any.

    Raises:
        UsageError: there is no such axis.
        ComparisonError: a checkpoint does not record it.
    """

    def progress_of(run: RunFolder) -> list[tuple[str, Progress]]:
        names = [run.name if c.relative == "." else c.relative for c in run.checkpoints]
        return [
            (n, training_progress(c.training)) for n, c in zip(names, run.checkpoints, strict=True)
        ]

    choose_axis([progress_of(run) for run in runs], by)


def _recorded(*runs: Sequence[CheckpointRecord]) -> list[list[tuple[str, Progress]]]:
    return [[(record.path, record.progress) for record in run] for run in runs]


def _check_comparable(judged: tuple[RunRecord, RunRecord], *, force: bool) -> list[str]:
    """Notes on differences in how two runs were measured.

    Raises:
        ComparisonError: probe or estimators differ, and `force` is off.
    """
    a, b = judged
    differing: list[tuple[str, Any, Any]] = []
    if a.probe["sha256"] != b.probe["sha256"]:
        differing.append(("probe", a.probe["sha256"][:12], b.probe["sha256"][:12]))
    differing += [
        (name, a.settings.get(name), b.settings.get(name))
        for name in ("fisher", "unit", "layers")
        if a.settings.get(name) != b.settings.get(name)
    ]
    kinds = tuple(str(r.newest.replay.get("dtype")) for r in judged)
    notes = [f"dtype: {kinds[0]} against {kinds[1]}"] if kinds[0] != kinds[1] else []
    if differing and not force:
        name, one, other = differing[0]
        raise ComparisonError(
            f"the runs were not measured with the same {name}",
            found=f"{one} against {other}",
            hint="give both the same --probe, or --force to compare without intervals",
        )
    return notes + [f"{name}: {one} against {other}" for name, one, other in differing]


def _choose_healthier(
    judged: tuple[RunRecord, RunRecord], pairs: tuple[MatchedPair, ...]
) -> tuple[Side | None, str]:
    """The healthier run (None if no difference was shown), and the reason.

    It is the run with the better verdict on routing. If these are equal, it is the run with the
    lower paired loss, provided that the interval of the difference excludes 0.
    """
    words = tuple(r.verdict.routing if r.verdict else "inconclusive" for r in judged)
    if all(w in RANKS for w in words) and RANKS[words[0]] != RANKS[words[1]]:
        first = RANKS[words[0]] < RANKS[words[1]]
        better, worse = (words[0], words[1]) if first else (words[1], words[0])
        reason = f"its routing is {better}, the other's {worse}{_collapse_words(pairs)}"
        return ("a" if first else "b"), reason
    routing = f"routing is {words[0]} in both" if words[0] == words[1] else "routing is undecided"
    if not pairs:
        return None, f"{routing}, and no checkpoints match"
    loss = pairs[-1].differences.get("loss")
    gap = loss.difference if loss is not None else None
    if gap is None or gap.value is None or gap.ci_low is None or gap.ci_high is None:
        return None, f"{routing}, and the loss difference has no interval: no difference shown"
    interval = f"{gap.value:+.4f} nats per token [{gap.ci_low:+.4f}, {gap.ci_high:+.4f}], B minus A"
    if gap.ci_low <= 0.0 <= gap.ci_high:
        return (
            None,
            f"{routing}, and the interval of the paired loss difference contains 0 ({interval})",
        )
    reason = f"{routing}; its loss is lower at the last matched pair ({interval})"
    return ("a" if gap.value > 0 else "b"), reason


def _collapse_words(pairs: tuple[MatchedPair, ...]) -> str:
    """The collapse of the worst router of each run, in words; "" if not measured in both."""
    found = pairs[-1].differences.get("collapse_worst") if pairs else None
    if found is None or found.a.value is None or found.b.value is None:
        return ""
    gap = found.difference
    words = f"; collapse of the worst router is {found.a.value:.3f} in A, {found.b.value:.3f} in B"
    if gap.value is None or gap.ci_low is None or gap.ci_high is None:
        return words
    return f"{words}: {gap.value:+.3f} [{gap.ci_low:+.3f}, {gap.ci_high:+.3f}]"


def _summary(run: RunRecord) -> RunSummary:
    verdict = run.verdict
    return RunSummary(
        name=str(run.run["name"]),
        status=verdict.status if verdict else None,
        routing=verdict.routing if verdict else None,
        performance=verdict.performance if verdict else None,
        model_type=run.run.get("model_type"),
        checkpoints=len(run.checkpoints),
    )
