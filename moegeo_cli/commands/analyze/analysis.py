"""A run from its folder to its record: what to measure, what is measured already, what is new."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moegeo_cli import __version__
from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.training import TrainingLog
from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.commands.analyze.history import add_history
from moegeo_cli.commands.analyze.lenses import find_lenses
from moegeo_cli.errors import BaselineError, MoegeoError
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.measuring.probe import open_probe
from moegeo_cli.measuring.provenance import measured_versions
from moegeo_cli.measuring.run import (
    FRESH_INITIALISATIONS,
    Listener,
    Measured,
    Progress,
    RunMeasurement,
)
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe, Source
from moegeo_cli.probes.unigram import unigram_losses
from moegeo_cli.records import RunRecord, from_dict, to_dict
from moegeo_cli.records.facts import ProbeFacts
from moegeo_cli.records.lenses import Lenses
from moegeo_cli.settings import Settings
from moegeo_cli.store.cache import Store, entry_key

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """A run as measured, not yet judged.

    `keys` and `fresh` go by a checkpoint's path in the run: where its measurement is stored,
    and what was loaded or measured just now. `baseline_keys` are those of the baseline draws.
    """

    record: RunRecord
    measurement: RunMeasurement
    keys: Mapping[str, str]
    baseline_keys: tuple[str, ...]
    fresh: Mapping[str, Measured]

    def lenses(self) -> dict[str, Lenses]:
        """What further commands measured of each checkpoint, by its path, from the store."""
        source = self.measurement
        return {
            c.path: find_lenses(source.store, c.fingerprint, source.models)
            for c in self.record.checkpoints
        }

    def measured(self, relative: str) -> Measured:
        """A checkpoint's record and arrays, from memory or from the store."""
        if relative in self.fresh:
            return self.fresh[relative]
        return self.measurement.stored(self.keys[relative])

    def baseline(self) -> Baseline:
        """What the scores compare with, from memory or from the store."""
        known, source = {m.key: m for m in self.fresh.values()}, self.measurement
        draws = [known.get(key) or source.stored(key) for key in self.baseline_keys]
        return Baseline(draws, make_draws(source.groups_S, source.settings.seed))


def measure_run(
    folder: RunFolder,
    store: Store,
    *,
    settings: Settings,
    probe: Source | Path | str | None,
    max_tokens: int | None,
    steps: str | Sequence[int] | None,
    latest: bool,
    verify_fingerprint: str,
    progress: Listener | None,
    baseline: str | None,
    models: Models,
    ranks: Ranks | None = None,
    before: Callable[[], object] | None = None,
) -> Analysis:
    """Everything but judging: the run's record as far as it rests on measurements.

    Args:
        folder: the run.
        store: where measurements are kept.
        settings: how to measure.
        probe: a probe file, with the keys of its records; None for the bundled one.
        max_tokens: probe tokens; None for what the dead-expert test needs.
        steps: only these steps, like "0,100-500".
        latest: only the newest checkpoint, and the baseline.
        verify_fingerprint: "sampled" or "full".
        progress: hears how far the work is.
        baseline: a step, a path, "init", "none"; None for step 0, of a run of adapters its base
            model.
        models: what model the run is of.
        ranks: who shares the probe; None for this process alone.
        before: called once everything that can be refused at once has been seen.

    Raises:
        MoegeoError: what opening, loading and replaying raise.
    """
    newest = folder.newest
    config, architecture = newest.config, models.describe(newest)
    loaded = open_probe(folder, probe, max_tokens, models)
    chosen = choose_checkpoints(folder, steps, latest)
    base_folder, base_reason = _baseline_folder(folder, baseline, models)
    measurement = RunMeasurement(
        architecture, config, loaded, settings, store, progress, models, ranks
    )
    wanted = list(chosen)
    if base_folder is not None and all(c.path != base_folder.path for c in wanted):
        wanted.insert(0, base_folder)
    for checkpoint in wanted:  # whether or not its measurement is stored
        _refuse_mixed(checkpoint, models.describe(checkpoint), newest, architecture)
    measurement.require_memory(wanted, verify_fingerprint)
    if before is not None:
        before()
    prints = {c.path: c.fingerprint(verify_fingerprint) for c in wanted}
    progressed = {c.path: reached(c.training) for c in wanted}
    for checkpoint in wanted:
        checkpoint.unmap()
    derived = entry_key(
        {
            "keys": [
                [measurement.key(prints[c.path]), c.step, c.relative, progressed[c.path]]
                for c in wanted
            ],
            "baseline": baseline,
            "chosen": [c.relative for c in chosen],
            "version": __version__,
        }
    )
    initial = baseline == "init"
    measured: dict[Path, Measured] = {}
    draws: list[Measured] = []
    kept = _load_history(store, f"run-{derived}")
    if kept is not None:
        history, baseline_keys = kept.run, kept.baseline
    else:
        if progress:
            draws_wanted = FRESH_INITIALISATIONS if initial else 0
            progress.begin(folder.name, len(wanted) + draws_wanted)
        measured = _measure_all(measurement, wanted, prints, progressed, models, progress)
        if initial:
            draws = measurement.initial(chosen[-1], prints[chosen[-1].path])
        elif base_folder is not None:
            draws = [measured[base_folder.path]]
            _refuse_other_architecture(measured[chosen[-1].path], draws[0])
        history = add_history(
            [measured[c.path] for c in chosen], draws, settings=settings, reason=base_reason,
            kind="init" if initial else "checkpoint",
            step=base_folder.step if base_folder else None,
        )  # fmt: skip
        baseline_keys = tuple(m.key for m in draws)
        keys = sorted({m.key for m in measured.values()} | set(baseline_keys))
        store.save_json(
            f"run-{derived}",
            to_dict(_KeptHistory(tuple(keys), baseline_keys, history)),
        )
    return Analysis(
        record=_fill(history, folder, architecture, loaded, settings, baseline),
        measurement=measurement,
        keys={c.relative: measurement.key(prints[c.path]) for c in wanted},
        baseline_keys=baseline_keys,
        fresh={
            **{c.relative: measured[c.path] for c in wanted if c.path in measured},
            **{m.record.path: m for m in draws},
        },
    )


def _measure_all(
    measurement: RunMeasurement,
    wanted: list[Checkpoint],
    prints: Mapping[Path, str],
    progressed: Mapping[Path, Progress],
    models: Models,
    progress: Listener | None,
) -> dict[Path, Measured]:
    """Every wanted checkpoint, from the store where it is there."""
    measured: dict[Path, Measured] = {}
    todo = []
    for checkpoint in wanted:
        found = measurement.load(checkpoint, prints[checkpoint.path], progressed[checkpoint.path])
        if found is None:
            todo.append(checkpoint)
            continue
        measured[checkpoint.path] = found
        if progress:
            progress.checkpoint(checkpoint.relative, 0, "already measured")
    for place, checkpoint in enumerate(todo):
        models.check(checkpoint, measurement.architecture)
        upcoming = _files(todo[place + 1 :])
        measured[checkpoint.path] = measurement.measure(
            checkpoint, prints[checkpoint.path], progressed[checkpoint.path], upcoming
        )
        checkpoint.unmap()
    return measured


def _refuse_mixed(
    checkpoint: Checkpoint, own: Architecture, newest: Checkpoint, of: Architecture
) -> None:
    """Checkpoints that choose otherwise are not one run, whatever is stored of them."""
    if own == of:
        return
    told = say_choice_differences(own, of)
    raise BaselineError(
        f"{checkpoint.relative} is of another architecture than {newest.relative}",
        found="; ".join(told) or None,
        hint="analyze them separately: different K, E or groups make no trajectory",
    )


def _files(upcoming: list[Checkpoint]) -> list[Path]:
    """The weight files of the next checkpoint; damage is met when it is its turn."""
    try:
        return list(upcoming[0].files.files) if upcoming else []
    except MoegeoError:
        return []


def reached(log: TrainingLog) -> Progress:
    """How far a checkpoint is, by each count that its run kept."""
    counts = {"step": log.step, "tokens": log.tokens, "fraction": log.fraction}
    return {name: None if n is None else float(n) for name, n in counts.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _KeptHistory:
    """A run put in relation to its baseline, and the keys of all entries that it rests on."""

    keys: tuple[str, ...]
    baseline: tuple[str, ...]  # those of its baseline
    run: RunRecord


def _load_history(store: Store, name: str) -> _KeptHistory | None:
    """It counts only while every measurement that it rests on is whole."""
    try:
        kept = from_dict(_KeptHistory, store.load_json(name))
    except ValueError:
        return None
    return kept if all(store.record(key) is not None for key in kept.keys) else None


def _fill(
    history: RunRecord,
    folder: RunFolder,
    architecture: Architecture,
    probe: Probe,
    settings: Settings,
    baseline: str | None,
) -> RunRecord:
    """What is known of the run without measuring."""
    trained = folder.newest.training
    coverage = [c.coverage for c in history.checkpoints]
    versions, version_notes = measured_versions(history.checkpoints)
    whole = not folder.missed and all(c.routers_found == c.routers_measured for c in coverage)
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
            **dataclasses.asdict(settings),
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


def say_choice_differences(a: Architecture, b: Architecture) -> list[str]:
    """What two architectures choose otherwise: E, K, groups, scoring; "a against b"."""
    facts = (
        ("experts (E)", a.experts, b.experts),
        ("experts by layer", a.experts_by_layer, b.experts_by_layer),
        ("chosen experts a token (K)", a.top_k, b.top_k),
        ("chosen experts by layer", a.top_k_by_layer, b.top_k_by_layer),
        ("groups of experts", a.selection.groups, b.selection.groups),
        ("renormalised weights", a.selection.renormalised, b.selection.renormalised),
        ("scoring", a.scoring, b.scoring),
    )
    return [f"{name}: {one} against {other}" for name, one, other in facts if one != other]


def _baseline_folder(
    folder: RunFolder, baseline: str | None, models: Models
) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint that FHS compares with, or why there is none."""
    if baseline in ("none", "init"):
        return None, "no baseline was asked for" if baseline == "none" else None
    if baseline is None or re.fullmatch(r"\d{1,15}", baseline):
        step = int(baseline or 0)
        found = [c for c in folder.checkpoints if c.step == step]
        if found:
            return found[0], None
        started = _started_from(folder) if baseline is None else None
        if started is not None:
            return started, None
        if baseline is None:
            return None, "the run has no step-0 checkpoint; use --baseline init, STEP or PATH"
        have = ", ".join(str(c.step) for c in folder.checkpoints)
        raise BaselineError(f"the run has no checkpoint of step {step}", found=f"steps {have}")
    other = models.open(Path(baseline))
    start = other.checkpoints[0]
    name = start.path.name if other.is_single else f"{other.name}/{start.relative}"
    return start.named(f"baseline:{name}"), None


def _started_from(folder: RunFolder) -> Checkpoint | None:
    """The base model of a run of adapters, which is its step 0; None for any other run."""
    bases = {c.config_folder for c in folder.checkpoints if c.layout == ADAPTER}
    if folder.is_single or len(bases) != 1 or any(c.layout != ADAPTER for c in folder.checkpoints):
        return None
    [path] = bases
    base = Checkpoint(path, f"baseline:{path.resolve().name}", step=0)
    base.require_whole()
    return base


def _refuse_other_architecture(newest: Measured, base: Measured) -> None:
    ours = [(r.path, r.weight_ED.shape) for r in newest.arrays.routers]
    theirs = [(r.path, r.weight_ED.shape) for r in base.arrays.routers]
    if ours != theirs:
        raise BaselineError(
            "the baseline has other routers than the run",
            found=f"{len(theirs)} routers against {len(ours)}",
            hint="choose a baseline of the same architecture, or --baseline init",
        )
