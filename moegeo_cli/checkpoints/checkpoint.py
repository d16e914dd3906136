"""`Checkpoint`: access to the files of one checkpoint, each read once and cached.

A command opens a `Checkpoint` once and passes it on to replay, measuring and reports.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.config import read_adapter_config
from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.architecture import Architecture, describe_architecture
from moegeo_cli.checkpoints.effective import EffectiveWeights
from moegeo_cli.checkpoints.fingerprint import fingerprint
from moegeo_cli.checkpoints.folders import (
    config_bytes,
    find_config,
    parse_config,
    read_trainer_state,
)
from moegeo_cli.checkpoints.layouts import foreign_layout_error, recognise_foreign
from moegeo_cli.checkpoints.opening import detect_layout, open_adapter, open_weights
from moegeo_cli.checkpoints.quantised.settings import read_settings
from moegeo_cli.checkpoints.training import TrainingLog, read_training
from moegeo_cli.checkpoints.uneven import with_experts_by_layer
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, NoCheckpointError


class Checkpoint:
    """The files of one checkpoint. Each is read on first access and then cached.

    Later changes of the files are not seen; open a new `Checkpoint` to see them.

    Args:
        path: the checkpoint's folder. For a user's own model also a single state-dict file.
        relative: its path within its run, "." for a run of one checkpoint.
        step: the training step; None where it is not known.
        given_config: the folder that `--config` names.
        own: whether the checkpoint is of a user's own model. Parts of its tensor names may then
            look like a wrapper's prefix (`module.`) without being one.
    """

    def __init__(
        self,
        path: Path,
        relative: str = ".",
        *,
        step: int | None = None,
        given_config: Path | None = None,
        own: bool = False,
    ) -> None:
        self.path, self.relative, self.step = path, relative, step
        self.given_config, self.own = given_config, own
        self._fingerprints: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, step={self.step})"

    @property
    def title(self) -> str:
        """Its name in reports: the path within its run, or the folder's name if it stands alone."""
        return self.path.resolve().name if self.relative == "." else self.relative

    def renamed(self, relative: str) -> Checkpoint:
        """A copy of this checkpoint with another `relative` path."""
        twin = copy.copy(self)
        twin.relative = relative
        return twin

    @cached_property
    def found_layout(self) -> str | None:
        """The layout, recognised by file names alone; None where there are no weights."""
        return detect_layout(self.path)

    @property
    def layout(self) -> str:
        """The layout of the opened weights.

        Raises: the same errors as `files`.
        """
        return self.files.layout

    @cached_property
    def config_folder(self) -> Path:
        """The folder that holds its config.json: see `find_config`."""
        return find_config(self.path, self.given_config, self.found_layout)

    @cached_property
    def config_bytes(self) -> bytes | None:
        """The bytes of config.json; None for a single state-dict file without one beside it.

        Raises:
            IncompleteCheckpointError: a folder without config.json, or config.json is too long.
        """
        return config_bytes(self.config_folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, parsed; {} for a single state-dict file without one.

        Raises:
            IncompleteCheckpointError: config.json is absent, truncated, or not an object.
        """
        raw = self.config_bytes
        return {} if raw is None else parse_config(raw, self.config_folder)

    @cached_property
    def trainer_state(self) -> dict[str, Any] | None:
        """trainer_state.json, parsed; None where there is none.

        Raises:
            IncompleteCheckpointError: the file is truncated or not an object.
        """
        return read_trainer_state(self.path)

    @cached_property
    def training(self) -> TrainingLog:
        """Step, loss log and settings of the training, from the files beside the weights.

        Raises:
            IncompleteCheckpointError: config.json or trainer_state.json is truncated.
        """
        found = read_training(self.path, self.config, self.trainer_state or {}, self.step)
        if self.trainer_state is not None:  # `found.log` holds the log: keep no second copy
            self.trainer_state = {**self.trainer_state, "log_history": None}
        return found

    @cached_property
    def files(self) -> WeightIndex:
        """The tensors in the checkpoint's own files.

        For an adapter without its base model these are the adapter's tensors.

        Raises: the same errors as `open_weights`.
        """
        return open_weights(self.path, self._known_config)

    @property
    def _known_config(self) -> dict[str, Any]:
        """config.json; {} where it is absent or broken. `config` raises the error for that."""
        try:
            return self.config
        except MoegeoError:
            return {}

    @cached_property
    def adapter(self) -> WeightIndex | None:
        """The tensors of the adapter in the checkpoint's folder; None where there is no adapter.

        The adapter may lie beside full weights or alone.

        Raises:
            IncompleteCheckpointError: the adapter's file is truncated.
        """
        if self.path.is_file():
            return open_adapter(self.path.parent)
        return self.files if self.found_layout == ADAPTER else open_adapter(self.path)

    @cached_property
    def stored(self) -> WeightIndex:
        """The stored tensors of the whole model.

        For an adapter without its base model beside it, these are the base model's tensors.

        Raises: the same errors as `open_weights`; PathError where the base model is not found.
        """
        if self.layout == ADAPTER:
            return open_weights(self.config_folder, self._known_config)
        return self.files

    @cached_property
    def weights(self) -> EffectiveWeights:
        """The tensors that the model computes with: unwrapped, dequantised, adapter merged.

        Raises: the same errors as `stored`.
        """
        return self._make()

    def effective(self, *, inner: bool | None = None, merge: bool = True) -> EffectiveWeights:
        """`weights`, with other choices of unwrapping and merging.

        Args:
            inner: see `unwrap_names`; None for true, or false for a user's own model.
            merge: false if the model itself has the adapter's matrices as parameters.

        Raises: the same errors as `stored`.
        """
        if merge and inner in (None, not self.own):
            return self.weights
        return self._make(inner=inner, merge=merge)

    def _make(self, *, inner: bool | None = None, merge: bool = True) -> EffectiveWeights:
        return EffectiveWeights(
            self.stored,
            read_settings(self._known_config, self.stored.folder),
            inner=not self.own if inner is None else inner,
            folder=self.path.parent if self.path.is_file() else self.path,
            adapter=self.adapter,
            merge=merge,
        )

    @cached_property
    def config_architecture(self) -> Architecture:
        """The routers as config.json describes them.

        Raises:
            DenseModelError: config.json asks for no routed experts.
            ShapeError: config.json describes an impossible model.
        """
        return describe_architecture(self.config, refuse=False)

    @cached_property
    def architecture(self) -> Architecture:
        """`config_architecture`, with the number of experts of each layer as the files hold it.

        Raises: the same errors as `config_architecture` and `with_experts_by_layer`.
        """
        return with_experts_by_layer(self.weights, self.config_architecture)

    def fingerprint(self, mode: str = "sampled") -> str:
        """A hash of config and weights: see `fingerprint.fingerprint`."""
        if mode not in self._fingerprints:
            self._fingerprints[mode] = fingerprint(
                self.path, self.effective(inner=True), self.config_bytes, mode
            )
        return self._fingerprints[mode]

    def require_whole(self) -> None:
        """Check that config and weight files exist and that their headers match their sizes.

        Raises:
            IncompleteCheckpointError: a file is missing or truncated.
            UnsafeFileError: an index or a pickle leads outside the folder or runs code.
            PathError: a file is unreadable, or the base model of an adapter is not found.
            UnsupportedLayoutError: a layout that must be converted first.
        """
        if self.found_layout is None:
            foreign = recognise_foreign(self.path)
            if foreign is not None:
                raise foreign_layout_error(self.path, foreign)
        try:
            _ = self.config, self.files
            if self.layout == ADAPTER:
                _ = read_adapter_config(self.path), self.stored
            _ = self.adapter
        except NoCheckpointError as error:
            raise IncompleteCheckpointError(
                error.message, found=error.found, hint=error.hint
            ) from None

    @property
    def cached_entries(self) -> int:
        """How many tensor entries (name, shape, place) and log entries are cached in memory."""
        log = (self.trainer_state or {}).get("log_history")
        return self.files.cached_entries + (len(log) if isinstance(log, list) else 0)

    def drop_cache(self) -> None:
        """Drop the large cached values; they are read again on the next access."""
        for name in ("files", "adapter", "stored", "weights", "trainer_state", "training"):
            self.__dict__.pop(name, None)

    def unmap(self) -> None:
        """Close memory-mapped files; names and shapes stay cached."""
        for index in (self.__dict__.get("files"), self.__dict__.get("stored")):
            if index is not None:
                index.unmap()
