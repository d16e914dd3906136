"""A run from its folder to its record: what to measure, what is measured already, what is new."""

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
from moegeo_cli.commands.analyze.facts import fill_facts, reached
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
        """Records of lenses (`experts`, `routing`) from the store, by the checkpoint's path."""
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
    """Measure a run: its record without verdict and recommendations.

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
    base_folder, base_reason = choose_baseline(folder, baseline, models)
    measurement = RunMeasurement(
        architecture, config, loaded, settings, store, progress, models, ranks
    )
    wanted = list(chosen)
    if base_folder is not None and all(c.path != base_folder.path for c in wanted):
        wanted.insert(0, base_folder)
    for checkpoint in wanted:  # whether or not its measurement is stored
        refuse_mixed(checkpoint, models.describe(checkpoint), newest, architecture)
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
            refuse_other_routers(measured[chosen[-1].path], draws[0])
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
        record=fill_facts(history, folder, architecture, loaded, settings, baseline),
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
            progress.checkpoint(checkpoint.title, 0, "already measured")
    for place, checkpoint in enumerate(todo):
        models.check(checkpoint, measurement.architecture)
        upcoming = _files(todo[place + 1 :])
        measured[checkpoint.path] = measurement.measure(
            checkpoint, prints[checkpoint.path], progressed[checkpoint.path], upcoming
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
class _KeptHistory:
    """A run put in relation to its baseline, and the keys of all entries that it rests on."""

    keys: tuple[str, ...]
    baseline: tuple[str, ...]  # those of its baseline
    run: RunRecord


def _load_history(store: Store, name: str) -> _KeptHistory | None:
    """The stored history, or None if any measurement that it uses is missing or damaged."""
    try:
        kept = from_dict(_KeptHistory, store.load_json(name))
    except ValueError:
        return None
    return kept if all(store.record(key) is not None for key in kept.keys) else None
