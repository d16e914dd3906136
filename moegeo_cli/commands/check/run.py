"""Reads the new checkpoints of a run and judges all of them by their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from moegeo_cli import __version__
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.describing import Describer, Filler
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.training import TrainingLog
from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums, sum_checkpoint
from moegeo_cli.commands.check.history import Entry, Past, Story
from moegeo_cli.commands.check.judging import FILE_RULES, judge_files, outcomes_of
from moegeo_cli.commands.check.keeping import Kept, keep_sums, key_of, load_sums
from moegeo_cli.commands.check.table import describe_checkpoint, describe_layer
from moegeo_cli.errors import MoegeoError
from moegeo_cli.measuring.provenance import package_version
from moegeo_cli.records import Coverage
from moegeo_cli.records.check import CheckedCheckpoint, CheckedLayer, CheckRecord
from moegeo_cli.store.cache import Store
from moegeo_cli.threads import few_threads
from moegeo_cli.verdict.files import FileOutcomes
from moegeo_cli.verdict.judging import add_history, changed_limits
from moegeo_cli.verdict.rules import Skipped
from moegeo_cli.verdict.thresholds import Thresholds


class Hearer(Protocol):
    """A listener for progress."""

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """A run starts, of so many checkpoints."""

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """A checkpoint starts, of so many bytes."""

    def advance(self, tokens: int) -> None:
        """So many bytes were read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """Reads checkpoints, or takes their sums from the store.

    Attributes:
        store: keeps what was read.
        quick: routers, biases and vectors alone.
        mode: how a checkpoint is told again: "sampled" or "full".
        models: says what a user's own model is; None for transformers'.
        identity: of that model.
        progress: hears how far the work is.
        fill: says how a config's module tree is filled, for adapters.
    """

    store: Store
    quick: bool = False
    mode: str = "sampled"
    models: Describer | None = None
    identity: Mapping[str, Any] | None = None
    progress: Hearer | None = None
    fill: Filler | None = None

    def keeps(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint's sums are stored, so that its files need not be read."""
        key = key_of(checkpoint, self.mode, self.quick, self.identity)
        return load_sums(self.store, key) is not None

    def read(self, name: str, chosen: Sequence[Checkpoint]) -> list[Kept]:
        """The sums of some checkpoints. Those that are not stored are read from the files.

        Args:
            name: of the run.
            chosen: the checkpoints, oldest first.

        Raises: what `sum_checkpoint` raises.
        """
        keys = [key_of(c, self.mode, self.quick, self.identity) for c in chosen]
        found = [load_sums(self.store, key) for key in keys]
        if self.progress and None in found:
            self.progress.begin(name, len(chosen))
        return [
            self._take(checkpoint, key) if kept is None else kept
            for checkpoint, kept, key in zip(chosen, found, keys, strict=True)
        ]

    def _take(self, checkpoint: Checkpoint, key: str) -> Kept:
        size = 0 if self.quick else checkpoint.stored.size
        advance = None
        if self.progress:
            words = "routers and biases" if self.quick else f"reading {_size(size)}"
            self.progress.checkpoint(checkpoint.title, size, words)
            advance = self.progress.advance
        told = checkpoint.fingerprint(self.mode)
        # What is not finite is told from the values; numpy's own warnings would be for nobody.
        with few_threads(1), np.errstate(all="ignore"):
            sums = sum_checkpoint(
                checkpoint, quick=self.quick, models=self.models, advance=advance, fill=self.fill
            )
        checkpoint.unmap()
        kept = Kept(told, sums)
        keep_sums(self.store, key, kept)
        return kept


def tell_story(chosen: Sequence[Checkpoint], kept: Sequence[Kept]) -> Story:
    """A run's checkpoints as the rules see them."""
    return Story([Entry(c.step, c.relative, k.sums) for c, k in zip(chosen, kept, strict=True)])


@dataclasses.dataclass(frozen=True, slots=True)
class FilesChecked:
    """Results for a run's files, by a checkpoint's path: the outcomes of rules, and the sums.

    `sums` is empty where the files could not be read.
    """

    outcomes: Mapping[str, FileOutcomes]
    sums: Mapping[str, CheckpointSums]


def find_outcomes(
    folder: RunFolder, chosen: Sequence[Checkpoint], reader: Reader, limits: Thresholds
) -> FilesChecked:
    """The outcome of every rule at some checkpoints of a run.

    What cannot be read is a reason beside each rule, and no error.

    Args:
        folder: the run.
        chosen: its checkpoints that were asked for, oldest first.
        reader: reads them.
        limits: the limits.
    """
    try:
        story = tell_story(chosen, reader.read(f"files of {folder.name}", chosen))
    except MoegeoError as error:
        return none_checked(chosen, f"the files could not be checked: {error.message}")
    return FilesChecked(
        {e.path: outcomes_of(Past(story, at, limits)) for at, e in enumerate(story.entries)},
        {e.path: e.sums for e in story.entries},
    )


def none_checked(chosen: Sequence[Checkpoint], reason: str) -> FilesChecked:
    """The result where files could not be checked, with the reason."""
    outcomes = dict.fromkeys(FILE_RULES, Skipped(reason))
    return FilesChecked({c.relative: outcomes for c in chosen}, {})


def check_run(
    folder: RunFolder,
    chosen: Sequence[Checkpoint],
    reader: Reader,
    limits: Thresholds,
    trained: TrainingLog,
) -> CheckRecord:
    """Read a run's files and judge them.

    Args:
        folder: the run.
        chosen: its checkpoints that were asked for, oldest first.
        reader: reads them.
        limits: the limits.
        trained: what the newest one's training left beside it.

    Returns:
        The run, judged; without interventions.

    Raises: what `sum_checkpoint` raises.
    """
    kept = reader.read(folder.name, chosen)
    story = tell_story(chosen, kept)
    checked = [
        _check(Past(story, place, limits), held.fingerprint) for place, held in enumerate(kept)
    ]
    whole = not folder.has_gaps and all(
        c.coverage.routers_found == c.coverage.routers_measured for c in checked
    )
    facts = kept[-1].sums.facts
    notes = [] if reader.store.problem is None else [f"not kept: {reader.store.problem}"]
    return CheckRecord(
        status="complete" if whole else "partial",
        versions={"moegeo": __version__, "numpy": package_version("numpy")},
        run={
            "name": folder.name,
            "layout": folder.newest.layout,
            "framework": trained.framework,
            "model_type": facts.get("model_type"),
            "experts": facts.get("experts"),
            "top_k": facts.get("top_k"),
            "scoring": facts.get("scoring"),
            "checkpoints_found": len(folder.checkpoints),
            "skipped": [{"path": s.path, "reason": s.reason} for s in folder.skipped],
            "notes": notes,
        },
        settings={
            "quick": reader.quick,
            "verify_fingerprint": reader.mode,
            **changed_limits(limits),
        },
        checkpoints=tuple(checked),
        verdict=add_history(checked),
    )


def _check(past: Past, fingerprint: str) -> CheckedCheckpoint:
    layers = tuple(describe_layer(layer, past) for layer in past.layers)
    unread = {x.router: _why(x) for x in layers if x.row_norms is None}
    notes = list(past.now.sums.notes)
    if past.copy_of is not None:
        notes.append(f"every byte of its tensors is that of {past.copy_of.name}")
    return CheckedCheckpoint(
        step=past.now.step,
        path=past.now.path,
        fingerprint=fingerprint,
        coverage=Coverage(len(layers), len(layers) - len(unread), unread),
        metrics=describe_checkpoint(layers, past),
        layers=layers,
        verdict=judge_files(past, bool(unread)),
        bytes_read=past.now.sums.bytes_read,
        scheme=past.now.sums.scheme,
        notes=tuple(notes),
    )


def _why(layer: CheckedLayer) -> str:
    return layer.reasons.get("router", "its values could not be read")


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
