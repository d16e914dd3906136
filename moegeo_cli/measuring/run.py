"""`RunMeasurement`: measures the checkpoints of a run, or reads them from the store.

Legend: S sequences, G groups.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import FormatError
from moegeo_cli.explanations.metrics import added_metrics
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.layers import checkpoint_record
from moegeo_cli.measuring.provenance import deciding_device, deciding_versions
from moegeo_cli.measuring.temporary_arrays import TemporaryArrays
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe
from moegeo_cli.records import CheckpointRecord
from moegeo_cli.records.facts import ReplayFacts
from moegeo_cli.registry import added_code
from moegeo_cli.settings import Settings
from moegeo_cli.store.cache import Store, entry_key

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks

FRESH_INITIALISATIONS = 8


class Listener(Protocol):
    """Callbacks for the progress of a measurement."""

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """Called at the start of a run with the number of checkpoints (or other items)."""

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """Called at the start of a checkpoint; `tokens` is 0 if nothing is replayed."""

    def advance(self, tokens: int) -> None:
        """Called with the number of tokens that were replayed."""

    def note(self, text: str) -> None:
        """Called with a line to show beside the progress."""


Progress = Mapping[str, float | None]  # step, tokens, fraction


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured checkpoint: its key in the store, its record, and a function to read its arrays.

    The arrays are read on demand and not held, so those of a long run need not fit in memory.
    """

    key: str
    record: CheckpointRecord
    read: Callable[[], CheckpointArrays]

    @property
    def arrays(self) -> CheckpointArrays:
        """The arrays, read again at each access."""
        return self.read()


class RunMeasurement:
    """Measures the checkpoints of one run with one probe, through the store.

    Args:
        architecture: the facts about the routers in the config.
        config: the parsed config.json.
        probe: the tokenised probe.
        settings: how to measure.
        store: the store.
        listener: callbacks for progress; None for none.
        models: which model the run has.
        ranks: the processes that share the probe; None for a single process.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: dict[str, Any],
        probe: Probe,
        settings: Settings,
        store: Store,
        listener: Listener | None,
        models: Models,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.architecture, self.config, self.probe = architecture, config, probe
        self.models = models
        self.settings, self.store, self.listener = settings, store, listener
        self.groups_S: np.ndarray = group_sequences(len(probe.sequences), settings.seed)
        self._measurer: Any = None
        self._aside = TemporaryArrays()

    def key(self, fingerprint: str) -> str:
        """The key of a measurement in the store: a hash of everything that it depends on."""
        return entry_key(
            {
                "fingerprint": fingerprint,
                "probe": self.probe.sha256,
                "settings": {
                    **self.settings.facts(),
                    "device": deciding_device(self.settings.device),
                },
                "versions": deciding_versions(),
                **({"model": self.models.identity} if self.models.identity else {}),
                **({"metrics": added_metrics()} if added_metrics() else {}),
                **({"added": added_code()} if added_code() else {}),
            }
        )

    def load(self, checkpoint: Checkpoint, fingerprint: str, progress: Progress) -> Measured | None:
        """The stored measurement of a checkpoint, with its current path and progress; or None."""
        found = self._stored(self.key(fingerprint))
        if found is None:
            return None
        record = dataclasses.replace(
            found.record, step=checkpoint.step, path=checkpoint.relative, progress=progress
        )
        return dataclasses.replace(found, record=record)

    def stored(self, key: str) -> Measured:
        """A measurement that must be in the store.

        Raises:
            FormatError: it is not.
        """
        found = self._stored(key)
        if found is None:
            raise _vanished()
        return found

    def _stored(self, key: str) -> Measured | None:
        record = self.store.record(key)
        return None if record is None else Measured(key, record, partial(self._read, key))

    def _read(self, key: str) -> CheckpointArrays:
        found = self.store.load(key)
        if found is None:
            raise _vanished()
        return _rebuild(*found)

    def measure(
        self,
        checkpoint: Checkpoint,
        fingerprint: str,
        progress: Progress,
        upcoming: Sequence[Path] = (),
    ) -> Measured:
        """Measure one checkpoint and store it; meanwhile `upcoming` files are read ahead."""
        from moegeo_cli.models.loading import read_ahead

        if self.listener:
            note = f"{self.probe.tokens:,} tokens"
            self.listener.checkpoint(checkpoint.title, self.probe.tokens, note)
        measurer = self._get_measurer()
        ahead = read_ahead(list(upcoming)) if upcoming else None
        arrays = measurer.measure(checkpoint, self.listener.advance if self.listener else None)
        if ahead is not None:
            ahead.join()
        if self.listener and measurer.memory is not None:
            self.listener.note(measurer.memory)
        return self._keep(self.key(fingerprint), arrays, checkpoint.step, checkpoint.relative,
                          fingerprint, progress)  # fmt: skip

    def require_memory(self, checkpoints: Sequence[Checkpoint], verify_fingerprint: str) -> None:
        """Check that the model fits into memory, before its weights are read.

        The limit is `--memory`, or else the machine's free memory. Only transformers models are
        checked.

        Args:
            checkpoints: the checkpoints to measure; stored ones are skipped.
            verify_fingerprint: "sampled" or "full".

        Raises:
            ResourceError: the model does not fit.
        """
        unplanned = self.models.own or self.models.routers_only
        if self.ranks is not None or (unplanned and self.settings.memory is None):
            return
        for checkpoint in checkpoints:
            key = self.key(checkpoint.fingerprint(verify_fingerprint))
            if self.store.record(key) is None:
                self._get_measurer().source(checkpoint)
                return

    def initial(self, checkpoint: Checkpoint, fingerprint: str) -> list[Measured]:
        """Fresh initialisations by a checkpoint's config, measured or from the store.

        They depend only on the config, so all checkpoints of a run share them. With the Fisher kind
        adam they also depend on the checkpoint's moments.
        """
        draws = []
        of = fingerprint if self.settings.fisher == "adam" else self._config_digest(checkpoint)
        for seed in range(FRESH_INITIALISATIONS):
            name = f"init:{seed}:{of}"
            key = self.key(name)
            found = self._stored(key)
            if found is not None:
                if self.listener:
                    self.listener.checkpoint(f"initialisation {seed}", 0, "already measured")
                draws.append(found)
                continue
            if self.listener:
                self.listener.checkpoint(f"initialisation {seed}", self.probe.tokens, "baseline")
            arrays = self._get_measurer().measure_initial(
                checkpoint, seed, self.listener.advance if self.listener else None
            )
            draws.append(self._keep(key, arrays, None, f"init-{seed}", name, {}))
        return draws

    def _config_digest(self, checkpoint: Checkpoint) -> str:
        """A hash of everything that a fresh model depends on."""
        config = {k: v for k, v in checkpoint.config.items() if k != "_name_or_path"}
        stated = json.dumps([config, repr(self.architecture)], sort_keys=True, default=str)
        return hashlib.sha256(stated.encode()).hexdigest()

    def _get_measurer(self) -> Any:
        """The measurer, created for the first model, so that a rerun imports no torch."""
        if self._measurer is None:
            from moegeo_cli.measuring.measurer import Measurer
            from moegeo_cli.measuring.serving import start

            make = Measurer if self.ranks is None else partial(start, self.ranks)
            self._measurer = make(
                self.architecture, self.config, self.probe, self.groups_S, self.settings,
                self.models,
            )  # fmt: skip
        return self._measurer

    def _keep(
        self,
        key: str,
        arrays: CheckpointArrays,
        step: int | None,
        relative: str,
        fingerprint: str,
        progress: Progress,
    ) -> Measured:
        # Gram matrices are stored as float32. Converted here too, so that a fresh measurement gives
        # the same bytes as a stored one.
        arrays = CheckpointArrays.from_arrays(
            arrays.to_arrays(),
            arrays.describe(),
            routers_found=arrays.routers_found,
            not_measured=arrays.not_measured,
            replay=arrays.replay,
        )
        record = checkpoint_record(
            arrays, self.probe, self.settings, step=step, path=relative, fingerprint=fingerprint,
            progress=progress,
        )  # fmt: skip
        values = arrays.to_arrays()
        record = self.store.save(key, record, values)
        kept = self._stored(key)
        if kept is not None:
            return dataclasses.replace(kept, record=record)
        own, read = record, self._aside.keep(key, values)
        return Measured(key, record, lambda: _rebuild(own, read()))


def _vanished() -> FormatError:
    return FormatError("a stored measurement has vanished", hint="run the command again")


def _rebuild(record: CheckpointRecord, arrays: dict[str, np.ndarray]) -> CheckpointArrays:
    """The arrays of a checkpoint, from stored arrays and their record."""
    replay: ReplayFacts = {**record.replay}
    described = replay.pop("described")
    return CheckpointArrays.from_arrays(
        arrays,
        described,
        routers_found=record.coverage.routers_found,
        not_measured=record.coverage.not_measured,
        replay=replay,
    )
