"""Facts about a run that need no measurement: files, architecture, training log, settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.training import TrainingLog
from moegeo_cli.measuring.provenance import measured_versions
from moegeo_cli.measuring.run import Progress
from moegeo_cli.probes import Probe
from moegeo_cli.probes.unigram import unigram_losses
from moegeo_cli.records import RunRecord
from moegeo_cli.records.facts import ProbeFacts
from moegeo_cli.settings import Settings


def training_progress(log: TrainingLog) -> Progress:
    """Step, tokens and fraction of training at a checkpoint; None for what was not recorded."""
    counts = {"step": log.step, "tokens": log.tokens, "fraction": log.fraction}
    return {name: None if n is None else float(n) for name, n in counts.items()}


def fill_facts(
    history: RunRecord,
    folder: RunFolder,
    architecture: Architecture,
    probe: Probe,
    settings: Settings,
    baseline: str | None,
) -> RunRecord:
    """Fill in the fields of a run's record that need no measurement.

    Args:
        history: the record with measured checkpoints.
        folder: the run.
        architecture: its architecture.
        probe: the probe.
        settings: how it was measured.
        baseline: the `baseline` option as given.

    Returns:
        The record with status, versions, facts of the run, probe and settings.
    """
    trained = folder.newest.training
    coverage = [c.coverage for c in history.checkpoints]
    versions, version_notes = measured_versions(history.checkpoints)
    whole = not folder.has_gaps and all(c.routers_found == c.routers_measured for c in coverage)
    return dataclasses.replace(
        history,
        status="complete" if whole else "partial",
        versions=versions,
        run={
            "name": folder.name,
            "layout": folder.newest.layout,
            "model_type": architecture.model_type,
            "architecture": _first_class(folder.newest.config),
            "framework": trained.framework,
            "experts": architecture.experts or None,
            "top_k": architecture.top_k,
            "scoring": architecture.scoring,
            "checkpoints_found": len(folder.checkpoints),
            "skipped": [{"path": s.path, "reason": s.reason} for s in folder.skipped],
            "training": dict(trained.settings),
            "log": [dict(entry) for entry in trained.log],
            "notes": [*architecture.notes, *version_notes],
        },
        probe={**probe.describe(), **_unigram(probe)},
        settings={
            **settings.facts(),
            "fisher": {"kind": settings.named[0], "unit": settings.named[1]},
            "unit": settings.named[1],
            "max_tokens": probe.tokens,
            "baseline": baseline or "auto",
        },
    )


def _unigram(probe: Probe) -> ProbeFacts:
    whole, by_domain = unigram_losses(probe)
    return {"unigram_loss": whole, "domain_unigram_loss": by_domain}


def _first_class(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None
