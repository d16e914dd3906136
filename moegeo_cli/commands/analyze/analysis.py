"""Measures a run: loads stored measurements, measures the rest, and fills the run's record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moegeo_cli import __version__
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.commands.analyze.architectures import refuse_mixed
from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.commands.analyze.choosing_baseline import choose_baseline, refuse_other_routers
from moegeo_cli.commands.analyze.facts import fill_facts, training_progress
from moegeo_cli.commands.analyze.history import add_history
from moegeo_cli.commands.analyze.lenses import find_lenses
from moegeo_cli.errors import MoegeoError
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.measuring.probe import open_probe
from moegeo_cli.measuring.run import (
    FRESH_INITIALISATIONS,
    Listener,
    Measured,
    Progress,
    RunMeasurement,
)
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Source
from moegeo_cli.records import RunRecord, from_dict, to_dict
from moegeo_cli.records.lenses import Lenses
from moegeo_cli.settings import Settings
from moegeo_cli.store.cache import Store, entry_key

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """A measured run that is not yet judged.

    Attributes:
        record: the run's record, without verdict and recommendations.
        measurement: measures and stores checkpoints of this run.
        keys: store key of each measurement, by the checkpoint's path in the run.
        baseline_keys: store keys of the baseline draws.
        fresh: measurements that are in memory, by the checkpoint's path in the run.
    """

    record: RunRecord
    measurement: RunMeasurement
    keys: Mapping[str, str]
    baseline_keys: tuple[str, ...]
    fresh: Mapping[str, Measured]

    def lenses(self) -> dict[str, Lenses]:
        """Stored records of lenses (`experts`, `routing`), by the checkpoint's path in the run."""
        source = self.measurement
        return {
            c.path: find_lenses(source.store, c.fingerprint, source.models)
            for c in self.record.checkpoints
        }

    def measured(self, relative: str) -> Measured:
        """A checkpoint's record and arrays, from memory or from the store.

        Args:
            relative: the checkpoint's path in the run.
        """
        if relative in self.fresh:
            return self.fresh[relative]
        return self.measurement.stored(self.keys[relative])

    def baseline(self) -> Baseline:
        """The baseline of the heterogeneity scores, from memory or from the store."""
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
    before_measuring: Callable[[], object] | None = None,
) -> Analysis:
    """Measure the chosen checkpoints of a run, or load their stored measurements.

    Args:
        folder: the run.
        store: where measurements are kept.
        settings: how to measure.
        probe: a probe file, with the keys of its records; None for the bundled probe.
        max_tokens: number of probe tokens; None for as many as the dead-expert test needs.
        steps: only these steps, like "0,100-500".
        latest: only the newest checkpoint, and the baseline.
        verify_fingerprint: "sampled" or "full".
        progress: receives an event for each checkpoint and batch; None for none.
        baseline: a step, a path, "init" or "none". None for the run's step 0 or, for a run of
            adapters, the base model.
        models: builds the model of each checkpoint.
        ranks: the processes that share the probe; None for this process alone.
        before_measuring: called after all checks of the input and before the first measurement.

    Returns:
        The measured run, without verdict and recommendations.

    Raises:
        MoegeoError: bad input, or an error while loading or replaying a checkpoint.
    """
    newest = folder.newest
    config, architecture = newest.config, models.describe(newest)
    loaded = open_probe(folder, probe, max_tokens, models)
    chosen = choose_checkpoints(folder, steps, latest)
    base_folder, base_reason = choose_baseline(folder, baseline, models)
    measurement = RunMeasurement(
        architecture, config, loaded, settings, store, progress, models, ranks
    )
    wanted = list(chosen)
    if base_folder is not None and all(c.path != base_folder.path for c in wanted):
        wanted.insert(0, base_folder)
    for checkpoint in wanted:  # also those whose measurement is stored
        refuse_mixed(checkpoint, models.describe(checkpoint), newest, architecture)
    measurement.require_memory(wanted, verify_fingerprint)
    if before_measuring is not None:
        before_measuring()
    fingerprints = {c.path: c.fingerprint(verify_fingerprint) for c in wanted}
    trained = {c.path: training_progress(c.training) for c in wanted}
    for checkpoint in wanted:
        checkpoint.unmap()
    run_key = entry_key(
        {
            "keys": [
                [measurement.key(fingerprints[c.path]), c.step, c.relative, trained[c.path]]
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
    stored = _load_history(store, f"run-{run_key}")
    if stored is not None:
        history, baseline_keys = stored.run, stored.baseline
    else:
        if progress:
            draws_wanted = FRESH_INITIALISATIONS if initial else 0
            progress.begin(folder.name, len(wanted) + draws_wanted)
        measured = _measure_all(measurement, wanted, fingerprints, trained, models, progress)
        if initial:
            draws = measurement.initial(chosen[-1], fingerprints[chosen[-1].path])
        elif base_folder is not None:
            draws = [measured[base_folder.path]]
            refuse_other_routers(measured[chosen[-1].path], draws[0])
        history = add_history(
            [measured[c.path] for c in chosen], draws, settings=settings, reason=base_reason,
            kind="init" if initial else "checkpoint",
            step=base_folder.step if base_folder else None,
        )  # fmt: skip
        baseline_keys = tuple(m.key for m in draws)
        keys = sorted({m.key for m in measured.values()} | set(baseline_keys))
        store.save_json(
            f"run-{run_key}",
            to_dict(_StoredHistory(tuple(keys), baseline_keys, history)),
        )
    return Analysis(
        record=fill_facts(history, folder, architecture, loaded, settings, baseline),
        measurement=measurement,
        keys={c.relative: measurement.key(fingerprints[c.path]) for c in wanted},
        baseline_keys=baseline_keys,
        fresh={
            **{c.relative: measured[c.path] for c in wanted if c.path in measured},
            **{m.record.path: m for m in draws},
        },
    )


def _measure_all(
    measurement: RunMeasurement,
    wanted: list[Checkpoint],
    fingerprints: Mapping[Path, str],
    trained: Mapping[Path, Progress],
    models: Models,
    progress: Listener | None,
) -> dict[Path, Measured]:
    """The measurement of every wanted checkpoint, loaded from the store if it is stored."""
    measured: dict[Path, Measured] = {}
    todo = []
    for checkpoint in wanted:
        found = measurement.load(
            checkpoint, fingerprints[checkpoint.path], trained[checkpoint.path]
        )
        if found is None:
            todo.append(checkpoint)
            continue
        measured[checkpoint.path] = found
        if progress:
            progress.checkpoint(checkpoint.title, 0, "already measured")
    for place, checkpoint in enumerate(todo):
        models.check(checkpoint, measurement.architecture)
        upcoming = _files(todo[place + 1 :])
        measured[checkpoint.path] = measurement.measure(
            checkpoint, fingerprints[checkpoint.path], trained[checkpoint.path], upcoming
        )
        checkpoint.unmap()
    return measured


def _files(upcoming: list[Checkpoint]) -> list[Path]:
    """The weight files of the next checkpoint, or [] if they cannot be found.

    The error is raised when that checkpoint is measured.
    """
    try:
        return list(upcoming[0].files.files) if upcoming else []
    except MoegeoError:
        return []


@dataclasses.dataclass(frozen=True, slots=True)
class _StoredHistory:
    """A run with scores and dynamics, and the store keys of all measurements that it uses."""

    keys: tuple[str, ...]
    baseline: tuple[str, ...]  # the keys of the baseline draws
    run: RunRecord


def _load_history(store: Store, name: str) -> _StoredHistory | None:
    """The stored history, or None if any measurement that it uses is missing or damaged."""
    try:
        stored = from_dict(_StoredHistory, store.load_json(name))
    except ValueError:
        return None
    return stored if all(store.record(key) is not None for key in stored.keys) else None
