"""The main runs: train one, measure it at its decisions, store its record and states.

A run's record is written whole and last, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence import exact
from benchmarks.evidence.features import (
    EXACT_TOKENS,
    EXTRA_AT,
    PROBE_SIZES,
    SEQUENCE_TOKENS,
    analyze_run,
    cut_run,
    extract,
    extract_fisher,
    practitioner,
    verdict_of,
)
from benchmarks.evidence.labels import measure
from benchmarks.evidence.settings import FRACTIONS, RunSettings, Size
from benchmarks.evidence.tasks import load_task
from benchmarks.evidence.training import Run, checkpoint_steps
from moegeo_cli.errors import ShapeError
from moegeo_cli.records import RunRecord

RESULTS, STATES, RUNS = "records", "states", "healthy"


def record_path(work: Path, name: str) -> Path:
    """Where a run's record lies."""
    return work / RESULTS / f"{name}.json"


def reference_folder(work: Path, run: RunSettings) -> Path:
    """The healthy run of the same base that a run is held against: another seed than its own."""
    seed = 1 if run.kind == "healthy" and run.seed == 0 else 0
    return work / RUNS / f"{run.base}-healthy-{seed}"


def carry_out(run: RunSettings, work: Path, size: Size = Size()) -> dict[str, Any]:  # noqa: B008
    """Train and measure one run; its record.

    Args:
        run: what to train.
        work: the study's folder.
        size: of the study.
    """
    started, run, steps = time.process_time(), size.of(run), size.steps
    task = load_task(run.task)
    keep = run.kind == "healthy" and run.seed in (0, 1)  # others are held against it
    with tempfile.TemporaryDirectory(prefix="evidence-") as scratch:
        folder = work / RUNS / run.name if keep else Path(scratch) / "run"
        shutil.rmtree(folder, ignore_errors=True)
        trainer = Run(run, task, steps, device=size.device)
        outcomes, states, full = [], {}, list[dict[str, Any]]()
        for step in checkpoint_steps(steps):
            trainer.advance(step)
            if trainer.broken:
                break
            trainer.save(folder / f"checkpoint-{step}")
            states[step] = trainer.state()
            if step == round(EXTRA_AT * steps):
                full = exact.compare(trainer.model, trainer.taps, task.validation)
            outcomes.append(
                measure(step, trainer.model, trainer.taps, run.model.experts, task.labels,
                        task.validation)
            )  # fmt: skip
        trained = time.process_time() - started
        (work / STATES).mkdir(parents=True, exist_ok=True)
        torch.save(
            {s: vars(state) for s, state in states.items()}, work / STATES / f"{run.name}.pt"
        )
        record = {
            "run": run.to_dict(),
            "steps": steps,
            "broken_at": trainer.step if trainer.broken else None,
            "losses": [e["loss"] for e in trainer.log],
            "loss_steps": [e["step"] for e in trainer.log],
            "unigram": task.unigram,
            "outcomes": [o.to_dict() for o in outcomes],
            "exact": full,
            "points": _points(folder, run, work, Path(scratch), [o.step for o in outcomes], steps),
            "train_seconds": round(trained, 2),
            "seconds": round(time.process_time() - started, 2),
        }
    _write(record_path(work, run.name), record)
    return record


def _points(
    folder: Path, run: RunSettings, work: Path, scratch: Path, saved: list[int], steps: int
) -> list[dict[str, Any]]:
    """What is known at each decision and at the end, each from a folder that ends there."""
    task = load_task(run.task)
    probe = task.write_probe(scratch)
    points = []
    for fraction in FRACTIONS:
        step = max(1, round(fraction * steps))
        if step not in saved:
            break
        view = cut_run(folder, step, scratch / f"until-{step}")
        record = analyze_run(view, task, probe, scratch / "store")
        features = extract(record) | practitioner(folder, step)
        point: dict[str, Any] = {"fraction": fraction, "step": step}
        if fraction == EXTRA_AT:
            features |= _extra_fishers(view, run, probe)
        if fraction in (EXTRA_AT, 1.0):
            point["by_tokens"] = {
                str(size): verdict_of(_small(view, run, probe, size)) for size in PROBE_SIZES
            }
        point |= {"features": features, "verdict": verdict_of(record),
                  "collapse_by_router": _collapse(record),
                  "probe_tokens": record.probe["tokens"]}  # fmt: skip
        points.append(point)
    return points


def _collapse(record: RunRecord) -> list[list[float | None]]:
    """Collapse and its null by router: what the threshold is fitted on."""
    return [
        [m.value, m.null_value, m.ci_low]
        for layer in record.newest.layers
        if (m := layer.metrics.get("collapse")) is not None
    ]


def _small(view: Path, run: RunSettings, probe: Path, tokens: int) -> RunRecord:
    task = load_task(run.task)
    return analyze_run(view, task, probe, None, max_tokens=tokens, latest=True, baseline="none")


def _extra_fishers(view: Path, run: RunSettings, probe: Path) -> dict[str, float]:
    """Kinds and units that the default analysis leaves out; without what moegeo refuses."""
    task, found = load_task(run.task), dict[str, float]()
    for options in (
        {"unit": "sequence", "max_tokens": SEQUENCE_TOKENS},
        {"unit": "loss_token", "max_tokens": EXACT_TOKENS},
        {"fisher": "adam", "max_tokens": EXACT_TOKENS, "baseline": "none"},
    ):
        # An optimizer with groups of its own is read where the routers' shape tells them apart.
        with contextlib.suppress(ShapeError):
            found |= extract_fisher(analyze_run(view, task, probe, None, latest=True, **options))
    return found


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(path)
