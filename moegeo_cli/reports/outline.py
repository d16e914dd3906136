"""The words and the order of metrics, routers and advice in a run's report, for all formats."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moegeo_cli.records import (
    CheckpointRecord,
    Coverage,
    Metric,
    RunRecord,
)
from moegeo_cli.records.check import CheckRecord
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.figures import count, plural, step_name

# Rows of the table over training, in this order; metrics that a run lacks are left out.
TRACKS = (
    "loss", "fsi", "fsi_dispatch", "collapse_worst", "dispersion", "information",
    "entropy_load_worst", "dead_experts", "near_ties_worst", "logit_max_worst",
    "fhs", "fhs_worst", "fhs_trace", "fhs_conditional", "heterogeneity_trace",
    "heterogeneity_conditional",
)  # fmt: skip
STATES = {"nonfinite": "NaN or Inf in this router", "zero": "all rows of this router are zero"}


@dataclass(frozen=True, slots=True)
class Track:
    """A metric over the checkpoints; None for a checkpoint that does not have it."""

    name: str
    points: tuple[Metric | None, ...]

    @property
    def noise(self) -> float:
        """The widest interval. Changes smaller than this are not drawn as a trend."""
        widths = [
            p.ci_high - p.ci_low
            for p in self.points
            if p is not None and p.ci_low is not None and p.ci_high is not None
        ]
        return max(widths, default=0.0)


def tracks(record: RunRecord, names: Sequence[str] = TRACKS) -> list[Track]:
    """The metrics over training; metrics that no checkpoint has are left out."""
    found = []
    for name in names:
        points = tuple(run_metric(c, name) for c in record.checkpoints)
        if any(p is not None for p in points):
            found.append(Track(name, points))
    return found


def run_metric(checkpoint: CheckpointRecord, name: str) -> Metric | None:
    """A run-level metric of a checkpoint, or its loss."""
    return checkpoint.loss if name == "loss" else checkpoint.metrics.get(name)


def identity(record: RunRecord) -> str:
    """Model type, routers, experts and scoring in one line."""
    layers = record.newest.layers
    parts = [str(record.run["model_type"])] if record.run.get("model_type") else []
    parts.append(plural(record.newest.coverage.routers_found, "router"))
    if layers:
        experts = sorted({x.experts for x in layers})
        top = sorted({x.top_k for x in layers if x.top_k is not None})
        shape = "/".join(count(e) for e in experts) + " experts"
        parts.append(shape + (f", top {'/'.join(map(str, top))}" if top else ""))
        parts.append("/".join(sorted({x.scoring for x in layers})))
    if record.run.get("framework"):
        parts.append(str(record.run["framework"]))
    return " · ".join(clean(p) for p in parts)


def checkpoint_words(record: RunRecord) -> str:
    """The number of checkpoints and their steps, in words."""
    names = [step_name(c.step, clean(c.path)) for c in record.checkpoints]
    if len(names) == 1:
        return "one checkpoint" + (f", {names[0]}" if names[0] != "checkpoint" else "")
    return f"{len(names)} checkpoints, {names[0]} to {names[-1].removeprefix('step ')}"


def checkpoint_name(checkpoint: str) -> str:
    """A checkpoint's path in its run and a comma; "" if it is the run itself."""
    return f"{clean(checkpoint)}, " if checkpoint not in ("", ".") else ""


BUNDLED, NOT_YOURS = "bundled", "not the training text"


def probe_source(probe: Mapping[str, Any]) -> str:
    """The name of a probe."""
    return clean(probe.get("source") or probe.get("name") or "unknown probe")


def probe_words(probe: Mapping[str, Any]) -> str:
    """The probe in words: source, tokens, sequences and domains."""
    source = probe_source(probe)
    source += f", {NOT_YOURS}" if source == BUNDLED else ""
    words = f"{source}: {count(probe.get('tokens'))} tokens"
    words += f" in {count(probe.get('sequences'))} sequences"
    domains = probe.get("domains")
    return words + (f", {plural(len(domains), 'domain')}" if domains else "")


class Covered(Protocol):
    """A record with a coverage."""

    @property
    def coverage(self) -> Coverage:
        """How many of its routers were measured."""


def coverage_gaps(checkpoint: Covered) -> list[str]:
    """Lines about routers that were not measured, grouped by reason; empty if all were."""
    coverage = checkpoint.coverage
    if coverage.routers_measured >= coverage.routers_found:
        return []
    lines = [
        f"{coverage.routers_measured} of {coverage.routers_found} routers measured: "
        "all numbers are of these routers only"
    ]
    by: dict[str, list[str]] = {}
    for router, reason in coverage.not_measured.items():
        by.setdefault(clean(reason), []).append(clean(router))
    for reason, routers in by.items():
        more = f" and {len(routers) - 3} more" if len(routers) > 3 else ""
        lines.append(f"{', '.join(routers[:3])}{more}: {reason}")
    return lines


def skipped_checkpoints(record: RunRecord | CheckRecord) -> list[str]:
    """A line for each checkpoint that was left out, with the reason."""
    skipped = record.run.get("skipped") or ()
    return [f"{clean(s.get('path'))}: {clean(s.get('reason'))}" for s in skipped]


def method(record: RunRecord) -> list[tuple[str, str]]:
    """How the numbers were measured, as names and words, for the end of a report."""
    newest, settings = record.newest, record.settings
    rows = [
        (
            "probe",
            f"{probe_words(record.probe)}; sha256 {clean(record.probe.get('sha256') or '?')[:16]}",
        )
    ]
    fisher = settings.get("fisher")
    if isinstance(fisher, Mapping):
        rows.append(
            ("Fisher", f"diagonal, {clean(fisher.get('kind'))}, unit {clean(fisher.get('unit'))}")
        )
    rows.append(("baseline", baseline_words(record.baseline)))
    replay = newest.replay
    device = [
        f"{name.replace('_', ' ')} {clean(replay[name])}"
        for name in ("device", "dtype", "batch_size", "batch_tokens", "threads")
        if replay.get(name) is not None
    ]
    if settings.get("seed") is not None:
        device.append(f"seed {clean(settings['seed'])}")
    rows.append(("replay", ", ".join(device) or "not recorded"))
    rows.append(
        ("versions", ", ".join(f"{clean(k)} {clean(v)}" for k, v in record.versions.items()))
    )
    notes = [*(record.run.get("notes") or ()), *(replay.get("notes") or ())]
    rows += [("note", clean(note)) for note in notes]
    return rows


def baseline_words(baseline: Mapping[str, Any]) -> str:
    """The baseline of FHS, and what its intervals do not include."""
    draws = baseline.get("baseline_draws")
    kind, reason = baseline.get("kind"), baseline.get("reason")
    if not draws:
        return f"none: {clean(reason)}" if reason else "none"
    if kind == "init":
        words = f"{draws} fresh initialisations of this config"
    else:
        step = baseline.get("step")
        words = f"checkpoint of step {step:,}" if isinstance(step, int) else "another checkpoint"
    words += f"; baseline_draws: {draws}"
    if draws == 1:
        words += ", so the spread of H(0) between seeds is not in the FHS intervals"
    return words


def next_commands(record: RunRecord, path: str | None = None) -> list[tuple[str, str]]:
    """Further commands, each with its purpose.

    Args:
        record: the run.
        path: the run's path; None if not known.
    """
    found = []
    run = "RUN" if path is None else shlex.quote(clean(path))
    draws = record.baseline.get("baseline_draws")
    if not draws or draws == 1:
        why = "include the spread between seeds in FHS" if draws else "give FHS a baseline"
        found.append((f"moegeo analyze {run} --baseline init", why))
    if record.verdict is not None and record.verdict.performance == "undetermined":
        found.append(
            (f"moegeo analyze {run} --reference OTHER", "judge the loss against a healthy run")
        )
    if len(record.checkpoints) > 1:
        found.append((f"moegeo compare {run} OTHER", "compare this run with another one"))
    found.append(
        (f"moegeo analyze {run} --format json", "every number, with intervals and reasons")
    )
    return found


def dynamics_tracks(record: RunRecord) -> tuple[list[str], list[Track]]:
    """Headings ("0 → 100") and run-level metrics of the moves between checkpoints."""
    moves = record.dynamics
    headings = [f"{_step(move['from_step'])} → {_step(move['to_step'])}" for move in moves]
    names = dict.fromkeys(name for move in moves for name in move["metrics"])
    return headings, [
        Track(name, tuple(move["metrics"].get(name) for move in moves)) for name in names
    ]


def _step(step: int | None) -> str:
    return "?" if step is None else f"{step:,}"
