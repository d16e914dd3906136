"""Find the complete checkpoints of a run in order of their steps. Every command starts here.

A path is one checkpoint (config.json beside weights), or a folder of checkpoints named after
their steps. Checkpoints that are incomplete or still being written are skipped with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.folders import find_given_config, list_folder
from moegeo_cli.checkpoints.hub_cache import find_snapshot
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, foreign_layout_error, recognise_foreign
from moegeo_cli.checkpoints.nesting import (
    find_models,
    find_runs,
    inner_folder,
    models_below_error,
    several_runs_error,
    step_folder,
)
from moegeo_cli.checkpoints.ordering import Skipped, sort_by_step
from moegeo_cli.checkpoints.safe_files import list_names
from moegeo_cli.checkpoints.sentinels import why_unfinished
from moegeo_cli.checkpoints.step_names import (
    TEMPORARY,
    has_step_or_epoch,
    is_checkpoint_name,
    parse_step,
)
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    UnsupportedLayoutError,
)

# Tensor and log entries that the checkpoints of one run may cache in memory: about 150 MB.
MAX_CACHED_ENTRIES = 250_000

# Subfolders that are parts of a checkpoint (accelerate's and others'), not checkpoints themselves.
_PART_NAME = re.compile(r"(?:pytorch_model_fsdp|optimizer)_\d+|model_and_optim|model")


__all__ = ["RunFolder", "Skipped", "open_run"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run: its complete checkpoints in order of their steps, and what was skipped.

    Attributes:
        name: the folder's name, for reports.
        path: the folder.
        is_single: whether the path that was given is itself one checkpoint.
        checkpoints: the complete ones, oldest first.
        skipped: the rest, each with a reason.
        config: the folder that `--config` names, for checkpoints without a config.json.
    """

    name: str
    path: Path
    is_single: bool
    checkpoints: tuple[Checkpoint, ...]
    skipped: tuple[Skipped, ...] = ()
    config: Path | None = None

    @property
    def newest(self) -> Checkpoint:
        """The checkpoint with the highest step."""
        return self.checkpoints[-1]

    @property
    def has_gaps(self) -> bool:
        """Whether a step of the run is missing because its checkpoint was skipped."""
        return any(not item.redundant for item in self.skipped)


def open_run(path: Path | str, config: Path | str | None = None) -> RunFolder:
    """Find the checkpoints under `path`, which is one checkpoint or a folder of them.

    Args:
        path: the checkpoint, or the run.
        config: a config.json, or a folder with one, for checkpoints without one of their own.

    Raises:
        PathError: `path` does not exist, is a file, or is unreadable; or `config` has no config.
        NoCheckpointError: `path` holds no checkpoint, or several runs.
        IncompleteCheckpointError: no checkpoint is complete.
        UnsupportedLayoutError: a layout that must be converted first.
    """
    folder = Path(path).expanduser()
    given = None if config is None else find_given_config(config)
    entries = list_folder(folder)
    name = folder.resolve().name or str(folder)
    root = Checkpoint(folder, given_config=given)
    children = [c for c in (_candidate(entry, given) for entry in entries) if c is not None]
    own_layout = root.found_layout
    if own_layout is not None:  # peft saves further adapters in subfolders of the active one
        children = [c for c in children if parse_step(c.relative) or c.found_layout != ADAPTER]
    if own_layout is not None and not any(child.found_layout for child in children):
        return _open_single(root, name)
    inner = inner_folder(folder) if own_layout is None and not _has_steps(children) else None
    if inner is not None:
        relative = inner.relative_to(folder).as_posix()
        return _open_single(Checkpoint(inner, relative, given_config=given), name)
    if own_layout is None and not _has_steps(children):
        runs = find_runs(folder)
        known = [run.path for run in runs]
        others = [child.relative for child in children if child.path not in known]
        if len(runs) == 1 and not others:
            return open_run(runs[0].path, config)
        if runs:
            raise several_runs_error(folder, runs, others)
    if not children:
        raise _no_checkpoint_error(root, entries)
    kept, skipped, errors = _open_members(folder, children)
    if own_layout is not None:
        final = _open_final_model(root, kept)
        if isinstance(final, Skipped):
            skipped.append(final)
        else:
            kept.append(final)
    if not kept:
        raise _none_usable_error(folder, errors)
    return RunFolder(name, folder, False, tuple(kept), tuple(skipped), given)


def _has_steps(children: Sequence[Checkpoint]) -> bool:
    return any(has_step_or_epoch(child.relative) for child in children)


def _candidate(entry: Path, given: Path | None) -> Checkpoint | None:
    """An entry of a run folder as a checkpoint; None where it cannot be one."""
    found = Checkpoint(entry, entry.name, given_config=given)
    has_step = parse_step(entry.name) is not None
    try:
        if not entry.is_dir():
            # A broken link that is named like a checkpoint is reported as skipped.
            return found if entry.is_symlink() and not entry.exists() and has_step else None
        layout = found.found_layout
        if layout == DISTRIBUTED and _PART_NAME.fullmatch(entry.name):
            return None
        is_candidate = (
            layout is not None
            or is_checkpoint_name(entry.name)
            or TEMPORARY.fullmatch(entry.name) is not None
            or (has_step_or_epoch(entry.name) and inner_folder(entry) is not None)
        )
    except OSError:
        return None
    return found if is_candidate else None


def _open_single(checkpoint: Checkpoint, name: str) -> RunFolder:
    """A run of one checkpoint. Raises where it is incomplete or still being written."""
    checkpoint.require_whole()
    folder = checkpoint.path
    checkpoint.step = step = _step_of(checkpoint)
    place = step_folder(folder)
    if parse_step(place.name) is not None:
        siblings = [e for e in _list_quietly(place.parent) if parse_step(e.name) is not None]
        reason = why_unfinished(place, step, siblings)
        if reason is not None:
            raise IncompleteCheckpointError(
                f"{folder} is still being written",
                found=reason.removeprefix("still being written: "),
                hint="wait until it is written, or give an earlier checkpoint",
            )
    return RunFolder(name, folder, True, (checkpoint,), (), checkpoint.given_config)


def _list_quietly(folder: Path) -> list[Path]:
    try:
        return list_folder(folder)
    except MoegeoError:
        return []


def _step_of(checkpoint: Checkpoint) -> int | None:
    """The step in the name of the checkpoint's step folder, else in trainer_state.json."""
    # Read in any case: a truncated trainer_state.json raises, since it is still being written.
    stated = _stated_step(checkpoint)
    step = parse_step(step_folder(checkpoint.path).name)
    return stated if step is None else step


def _stated_step(checkpoint: Checkpoint) -> int | None:
    """The step in trainer_state.json; None where it has none."""
    stated = (checkpoint.trainer_state or {}).get("global_step")
    return stated if type(stated) is int and stated >= 0 else None


def _open_members(
    run: Path, children: Sequence[Checkpoint]
) -> tuple[list[Checkpoint], list[Skipped], list[MoegeoError]]:
    """Open a run's candidates.

    Returns:
        The complete checkpoints in order, the skipped ones, and the errors of the skipped ones.
    """
    kept: list[Checkpoint] = []
    skipped: list[Skipped] = []
    errors: list[MoegeoError] = []
    cached = 0
    for child in children:
        try:
            kept.append(_open_member(child, [c.path for c in children]))
        except MoegeoError as error:
            errors.append(error)
            found = f" ({error.found})" if error.found else ""
            skipped.append(Skipped(child.relative, f"{error.message}{found}"))
            continue
        cached += kept[-1].cached_entries
        if cached > MAX_CACHED_ENTRIES:
            kept[-1].drop_cache()
    kept, left_out = sort_by_step(run, kept)
    return kept, sorted(skipped + left_out, key=lambda item: item.path), errors


def _open_member(child: Checkpoint, siblings: Sequence[Path]) -> Checkpoint:
    """Open one checkpoint of a run; its files may lie in a subfolder. Raises if it is skipped."""
    if TEMPORARY.fullmatch(child.relative):
        raise IncompleteCheckpointError("a temporary name: still being written, or left over")
    inner = inner_folder(child.path) if child.found_layout is None else None
    found = child
    if inner is not None:
        relative = inner.relative_to(child.path.parent).as_posix()
        found = Checkpoint(inner, relative, given_config=child.given_config)
    found.require_whole()
    found.step = _step_of(found)
    reason = why_unfinished(child.path, found.step, siblings)
    if reason is not None:
        raise IncompleteCheckpointError(reason)
    return found


def _open_final_model(root: Checkpoint, kept: Sequence[Checkpoint]) -> Checkpoint | Skipped:
    """The model saved in the run's folder itself: a checkpoint if it is newer than `kept`."""
    try:
        root.step = step = _stated_step(root)
        if step is None:
            reason = "the run's final model, without a trainer_state.json to tell its step"
            return Skipped(".", reason, redundant=True)
        match = next((c.relative for c in kept if c.step is not None and c.step >= step), None)
        if match:
            return Skipped(".", f"the run's final model, not newer than {match}", redundant=True)
        root.require_whole()
        return root
    except MoegeoError as error:
        return Skipped(".", error.message)


def _no_checkpoint_error(root: Checkpoint, entries: Sequence[Path]) -> MoegeoError:
    """The error for a folder without a readable checkpoint."""
    folder = root.path
    foreign = recognise_foreign(folder)
    if foreign is not None:
        return foreign_layout_error(folder, foreign)
    snapshot = find_snapshot(folder) if (folder / "snapshots").is_dir() else None
    if snapshot is not None:
        return NoCheckpointError(
            f"{folder} is a model's folder in the Hub's cache; its snapshots are the checkpoints",
            found=", ".join(list_names(folder / "snapshots")[:4]),
            hint=f"give {snapshot}",
        )
    models = find_models(folder)
    if models:
        return models_below_error(folder, models)
    names = [entry.name for entry in entries]
    if "config.json" in names or any("-of-" in name for name in names):
        try:
            _ = root.files
        except MoegeoError as error:
            return IncompleteCheckpointError(error.message, found=error.found, hint=error.hint)
    return NoCheckpointError(
        f"{folder} holds no checkpoint",
        found=", ".join(names[:8]) or "an empty folder",
        hint="give a folder with config.json and model.safetensors, or a folder of checkpoint-N",
    )


def _none_usable_error(folder: Path, errors: Sequence[MoegeoError]) -> MoegeoError:
    """The error for a run whose checkpoints were all skipped."""
    foreign = next((error for error in errors if isinstance(error, UnsupportedLayoutError)), None)
    if foreign is not None and all(isinstance(error, UnsupportedLayoutError) for error in errors):
        return foreign
    models = [place for place in find_models(folder) if place.parent != folder]
    if models and all(isinstance(error, IncompleteCheckpointError) for error in errors):
        return models_below_error(folder, models)
    return IncompleteCheckpointError(
        f"none of the {len(errors)} checkpoints in {folder} is complete",
        found="; ".join(error.message for error in errors[:4]),
        hint=errors[-1].hint if errors else None,
    )
