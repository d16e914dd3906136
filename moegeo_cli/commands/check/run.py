"""Reads the checkpoints of a run that are not stored yet, and judges all of them by their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from moegeo_cli import __version__
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.describing import Describer, SourceFinder
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.training import TrainingLog
from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums, sum_checkpoint
from moegeo_cli.commands.check.history import Entry, Past, RunHistory
from moegeo_cli.commands.check.judging import FILE_RULES, judge_files, outcomes_of
from moegeo_cli.commands.check.keeping import StoredSums, keep_sums, load_sums, sums_key
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


class ProgressListener(Protocol):
    """Receives the progress of reading files; see `measuring.run.Listener`."""

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """A run of `count` checkpoints starts."""

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """A checkpoint starts; `tokens` is its size in bytes."""

    def advance(self, tokens: int) -> None:
        """`tokens` further bytes were read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """Gives the sums of checkpoints: from the store, or read from the files and then stored.

    Attributes:
        store: where sums are stored.
        quick: read only routers, biases and vectors.
        mode: how a stored checkpoint is recognised: "sampled" or "full" (see `sums_key`).
        models: describes a user's own model; None for models of transformers.
        identity: the identity of that model.
        progress: receives an event for each checkpoint and each block of bytes read.
        fill: builds the module tree of a config, for adapters.
    """

    store: Store
    quick: bool = False
    mode: str = "sampled"
    models: Describer | None = None
    identity: Mapping[str, Any] | None = None
    progress: ProgressListener | None = None
    fill: SourceFinder | None = None

    def has_stored(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint's sums are stored, so that its files need not be read."""
        key = sums_key(checkpoint, self.mode, self.quick, self.identity)
        return load_sums(self.store, key) is not None

    def read(self, name: str, chosen: Sequence[Checkpoint]) -> list[StoredSums]:
        """The sums of the chosen checkpoints. Those that are not stored are read from the files.

        Args:
            name: the run's name.
            chosen: the checkpoints, oldest first.

        Raises:
            MoegeoError: see `sum_checkpoint`.
        """
        keys = [sums_key(c, self.mode, self.quick, self.identity) for c in chosen]
        found = [load_sums(self.store, key) for key in keys]
        if self.progress and None in found:
            self.progress.begin(name, len(chosen))
        return [
            self._read_one(checkpoint, key) if kept is None else kept
            for checkpoint, kept, key in zip(chosen, found, keys, strict=True)
        ]

    def _read_one(self, checkpoint: Checkpoint, key: str) -> StoredSums:
        size = 0 if self.quick else checkpoint.stored.size
        advance = None
        if self.progress:
            words = "routers and biases" if self.quick else f"reading {_size(size)}"
            self.progress.checkpoint(checkpoint.title, size, words)
            advance = self.progress.advance
        fingerprint = checkpoint.fingerprint(self.mode)
        # Values that are not finite are findings, so numpy's warnings about them are turned off.
        with few_threads(1), np.errstate(all="ignore"):
            sums = sum_checkpoint(
                checkpoint, quick=self.quick, models=self.models, advance=advance, fill=self.fill
            )
        checkpoint.unmap()
        kept = StoredSums(fingerprint, sums)
        keep_sums(self.store, key, kept)
        return kept


def build_history(chosen: Sequence[Checkpoint], kept: Sequence[StoredSums]) -> RunHistory:
    """The history of a run, in the form that the rules need."""
    return RunHistory(
        [Entry(c.step, c.relative, k.sums) for c, k in zip(chosen, kept, strict=True)]
    )


@dataclasses.dataclass(frozen=True, slots=True)
class FilesChecked:
    """Results of checking a run's files, by the checkpoint's path in the run.

    Attributes:
        outcomes: the outcome of every rule.
        sums: the sums; empty if the files could not be read.
    """

    outcomes: Mapping[str, FileOutcomes]
    sums: Mapping[str, CheckpointSums]


def find_outcomes(
    folder: RunFolder, chosen: Sequence[Checkpoint], reader: Reader, limits: Thresholds
) -> FilesChecked:
    """Apply every rule to the chosen checkpoints of a run.

    If the files cannot be read, no error is raised: every rule is skipped with that reason.

    Args:
        folder: the run.
        chosen: the chosen checkpoints, oldest first.
        reader: reads them.
        limits: the limits of the rules.
    """
    try:
        history = build_history(chosen, reader.read(f"files of {folder.name}", chosen))
    except MoegeoError as error:
        return skip_all(chosen, f"the files could not be checked: {error.message}")
    return FilesChecked(
        {e.path: outcomes_of(Past(history, at, limits)) for at, e in enumerate(history.entries)},
        {e.path: e.sums for e in history.entries},
    )


def skip_all(chosen: Sequence[Checkpoint], reason: str) -> FilesChecked:
    """The result if files cannot be checked: every rule is skipped with the reason."""
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
        chosen: the chosen checkpoints, oldest first.
        reader: reads them.
        limits: the limits of the rules.
        trained: the training log of the newest checkpoint.

    Returns:
        The judged run, without interventions.

    Raises:
        MoegeoError: see `sum_checkpoint`.
    """
    kept = reader.read(folder.name, chosen)
    history = build_history(chosen, kept)
    checked = [
        _check(Past(history, place, limits), one.fingerprint) for place, one in enumerate(kept)
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
        notes.append(f"every byte of its tensors is the same as at {past.copy_of.name}")
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
