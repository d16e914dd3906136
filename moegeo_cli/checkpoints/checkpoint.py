"""One checkpoint, opened once and passed on: whoever asks again is given what was found before."""

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
from moegeo_cli.checkpoints.layouts import recognise_foreign, refuse_foreign
from moegeo_cli.checkpoints.opening import detect_layout, open_adapter, open_weights
from moegeo_cli.checkpoints.quantised.settings import read_settings
from moegeo_cli.checkpoints.training import TrainingLog, read_training
from moegeo_cli.checkpoints.uneven import with_own_experts
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, NoCheckpointError


class Checkpoint:
    """What the files of one checkpoint say; each is read when it is first asked for, and kept.

    Files that change later are not seen: open the checkpoint again for that.

    Args:
        path: its folder; of a user's own model, also the one file that holds its state dict.
        relative: its path within its run, "." for a single one.
        given: the folder that `--config` gave.
        own: whether it is of a user's own model, whose names may hold what a wrapper's look like.

    Attributes:
        step: of training; None where nothing tells it.
    """

    def __init__(
        self,
        path: Path,
        relative: str = ".",
        *,
        step: int | None = None,
        given: Path | None = None,
        own: bool = False,
    ) -> None:
        self.path, self.relative, self.step = path, relative, step
        self.given, self.own = given, own
        self._fingerprints: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, step={self.step})"

    @property
    def title(self) -> str:
        """What people call it: its path within its run, of a single one the folder's name."""
        return self.path.resolve().name if self.relative == "." else self.relative

    def named(self, relative: str) -> Checkpoint:
        """The same checkpoint under another name."""
        twin = copy.copy(self)
        twin.relative = relative
        return twin

    @cached_property
    def found_layout(self) -> str | None:
        """The layout by the names of files; None where there are no weights."""
        return detect_layout(self.path)

    @property
    def layout(self) -> str:
        """The layout of its weights.

        Raises: what opening the weights raises.
        """
        return self.files.layout

    @cached_property
    def config_folder(self) -> Path:
        """The folder of its config.json: see `find_config`."""
        return find_config(self.path, self.given, self.found_layout)

    @cached_property
    def config_bytes(self) -> bytes | None:
        """config.json as it is; None for one file of a user's own model that has none beside it.

        Raises:
            IncompleteCheckpointError: it is absent or too long.
        """
        return config_bytes(self.config_folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, parsed; {} for one file without it.

        Raises:
            IncompleteCheckpointError: absent, cut, or not an object.
        """
        raw = self.config_bytes
        return {} if raw is None else parse_config(raw, self.config_folder)

    @cached_property
    def trainer_state(self) -> dict[str, Any] | None:
        """The Trainer's state; None where there is none."""
        return read_trainer_state(self.path)

    @cached_property
    def training(self) -> TrainingLog:
        """What the training left beside the weights.

        Raises:
            IncompleteCheckpointError: config.json or trainer_state.json is cut.
        """
        found = read_training(self)
        if self.trainer_state is not None:  # its log is held once
            self.trainer_state = {**self.trainer_state, "log_history": None}
        return found

    @cached_property
    def files(self) -> WeightIndex:
        """The tensors of its own files: of an adapter that lies alone, the adapter's.

        Raises: what `open_weights` raises.
        """
        return open_weights(self.path, self._known_config)

    @property
    def _known_config(self) -> dict[str, Any]:
        """config.json; {} where there is none, or a broken one: whoever needs it says so."""
        try:
            return self.config
        except MoegeoError:
            return {}

    @cached_property
    def adapter(self) -> WeightIndex | None:
        """The tensors of the adapter in its folder, beside weights or alone; None without one.

        Raises:
            IncompleteCheckpointError: its file is truncated.
        """
        if self.path.is_file():
            return open_adapter(self.path.parent)
        return self.files if self.found_layout == ADAPTER else open_adapter(self.path)

    @cached_property
    def stored(self) -> WeightIndex:
        """The files' tensors of the whole model: of an adapter that lies alone, the base model's.

        Raises: what `open_weights` raises; PathError where that base model is not there.
        """
        if self.layout == ADAPTER:
            return open_weights(self.config_folder, self._known_config)
        return self.files

    @cached_property
    def weights(self) -> EffectiveWeights:
        """The tensors that the model computes with.

        Raises: as `stored`.
        """
        return self._make()

    def effective(self, *, inner: bool | None = None, merge: bool = True) -> EffectiveWeights:
        """The same, where they are asked for otherwise.

        Args:
            inner: see `unwrap_names`; None for what suits the model.
            merge: false where the model has an adapter's matrices as parameters of its own.
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
            beside=self.adapter,
            merge=merge,
        )

    @cached_property
    def described(self) -> Architecture:
        """What config.json says of the routers.

        Raises:
            DenseModelError: no routed experts.
            ShapeError: what it says is impossible.
        """
        return describe_architecture(self.config, refuse=False)

    @cached_property
    def architecture(self) -> Architecture:
        """The same, with each layer's own number of experts where the files show that they differ.

        Raises: as `described`, and what `with_own_experts` raises.
        """
        return with_own_experts(self.weights, self.described)

    def fingerprint(self, mode: str = "sampled") -> str:
        """See `fingerprint.fingerprint`."""
        if mode not in self._fingerprints:
            self._fingerprints[mode] = fingerprint(self, mode)
        return self._fingerprints[mode]

    def require_whole(self) -> None:
        """See that config and weight files are there, and whole as far as their headers tell.

        Raises:
            IncompleteCheckpointError, UnsafeFileError, PathError, UnsupportedLayoutError: why not.
        """
        if self.found_layout is None:
            foreign = recognise_foreign(self.path)
            if foreign is not None:
                raise refuse_foreign(self.path, foreign)
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
    def held(self) -> int:
        """How many tensors and log entries are held in memory."""
        log = (self.trainer_state or {}).get("log_history")
        return self.files.placed + (len(log) if isinstance(log, list) else 0)

    def let_go(self) -> None:
        """Forget what is large: it is read again when it is asked for."""
        for name in ("files", "adapter", "stored", "weights", "trainer_state", "training"):
            self.__dict__.pop(name, None)

    def unmap(self) -> None:
        """Let go of mapped files; names and shapes stay known."""
        for index in (self.__dict__.get("files"), self.__dict__.get("stored")):
            if index is not None:
                index.unmap()
