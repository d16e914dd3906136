"""Find the checkpoints of a run, in order, and tell the whole ones from the rest.

A path is one checkpoint (config.json beside weights) or a folder of them, named after their
steps. A Trainer writes `trainer_state.json` last, so the newest checkpoint of a run whose
others have it is still being written as long as it lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.folders import given_config, list_folder
from moegeo_cli.checkpoints.headers import list_names
from moegeo_cli.checkpoints.hub_cache import find_snapshot
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, recognise_foreign, refuse_foreign
from moegeo_cli.checkpoints.nesting import (
    find_models,
    find_runs,
    inner_folder,
    models_below,
    several_runs,
    step_folder,
)
from moegeo_cli.checkpoints.ordering import Skipped, in_order
from moegeo_cli.checkpoints.sentinels import why_unfinished
from moegeo_cli.checkpoints.step_names import (
    TEMPORARY,
    is_checkpoint_name,
    parse_step,
    tells_order,
)
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    UnsupportedLayoutError,
)

# So many tensors and log entries of a run are held on to, some 150 MB.
MOST_HELD = 250_000

# parts of one checkpoint, accelerate's and others', which are no checkpoints themselves
_PART_NAME = re.compile(r"(?:pytorch_model_fsdp|optimizer)_\d+|model_and_optim|model")


__all__ = ["RunFolder", "Skipped", "open_run"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run: its complete checkpoints by step, and what was left out.

    `config` is the folder that `--config` gave for checkpoints that have no config.json of
    their own.
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
    def missed(self) -> bool:
        """Whether a point of the run's course was left out."""
        return any(not item.spare for item in self.skipped)


def open_run(path: Path | str, config: Path | str | None = None) -> RunFolder:
    """Find the checkpoints under `path`, which is one checkpoint or a folder of them.

    Args:
        path: the checkpoint, or the run.
        config: a config.json, or a folder with one, for checkpoints without one of their own.

    Raises:
        PathError: `path` does not exist, is a file, or is unreadable; or no config in `config`.
        NoCheckpointError: no checkpoint in it.
        IncompleteCheckpointError: the one checkpoint, or every one of the run, is incomplete.
        UnsupportedLayoutError: a layout that must be converted first.
    """
    folder = Path(path).expanduser()
    given = None if config is None else given_config(config)
    entries = list_folder(folder)
    name = folder.resolve().name or str(folder)
    root = Checkpoint(folder, given=given)
    children = [c for c in (_candidate(entry, given) for entry in entries) if c is not None]
    own_layout = root.found_layout
    if own_layout is not None:  # further adapters that peft saves below the one at work
        children = [c for c in children if parse_step(c.relative) or c.found_layout != ADAPTER]
    if own_layout is not None and not any(child.found_layout for child in children):
        return _open_single(root, name)
    inner = inner_folder(folder) if own_layout is None and not _has_steps(children) else None
    if inner is not None:
        relative = inner.relative_to(folder).as_posix()
        return _open_single(Checkpoint(inner, relative, given=given), name)
    if own_layout is None and not _has_steps(children):
        runs = find_runs(folder)
        known = [run.path for run in runs]
        others = [child.relative for child in children if child.path not in known]
        if len(runs) == 1 and not others:
            return open_run(runs[0].path, config)
        if runs:
            raise several_runs(folder, runs, others)
    if not children:
        raise _no_checkpoint(root, entries)
    kept, skipped, errors = _judge(folder, children)
    if own_layout is not None:
        final = _judge_root(root, kept)
        if isinstance(final, Skipped):
            skipped.append(final)
        else:
            kept.append(final)
    if not kept:
        raise _none_usable(folder, errors)
    return RunFolder(name, folder, False, tuple(kept), tuple(skipped), given)


def _has_steps(children: Sequence[Checkpoint]) -> bool:
    return any(tells_order(child.relative) for child in children)


def _candidate(entry: Path, given: Path | None) -> Checkpoint | None:
    """An entry of a run folder as a checkpoint; None where it can be none."""
    found, named = Checkpoint(entry, entry.name, given=given), parse_step(entry.name) is not None
    try:
        if not entry.is_dir():
            # A link to a checkpoint that is gone is missed, not overlooked.
            return found if entry.is_symlink() and not entry.exists() and named else None
        layout = found.found_layout
        if layout == DISTRIBUTED and _PART_NAME.fullmatch(entry.name):
            return None
        told = (
            layout is not None
            or is_checkpoint_name(entry.name)
            or TEMPORARY.fullmatch(entry.name) is not None
            or (tells_order(entry.name) and inner_folder(entry) is not None)
        )
    except OSError:
        return None
    return found if told else None


def _open_single(checkpoint: Checkpoint, name: str) -> RunFolder:
    """A run of one checkpoint, which must be complete; it may lie below the path that was given."""
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
    return RunFolder(name, folder, True, (checkpoint,), (), checkpoint.given)


def _list_quietly(folder: Path) -> list[Path]:
    try:
        return list_folder(folder)
    except MoegeoError:
        return []


def _step_of(checkpoint: Checkpoint) -> int | None:
    """The step by the folder's name, or that of the one that it lies deep in, else by the state."""
    stated = _stated_step(checkpoint)  # read in any case: one that is cut is still being written
    step = parse_step(step_folder(checkpoint.path).name)
    return stated if step is None else step


def _stated_step(checkpoint: Checkpoint) -> int | None:
    stated = (checkpoint.trainer_state or {}).get("global_step")
    return stated if type(stated) is int and stated >= 0 else None


def _judge(
    run: Path, children: Sequence[Checkpoint]
) -> tuple[list[Checkpoint], list[Skipped], list[MoegeoError]]:
    """Sort a run's candidates into complete checkpoints and skipped ones."""
    kept: list[Checkpoint] = []
    skipped: list[Skipped] = []
    errors: list[MoegeoError] = []
    held = 0
    for child in children:
        try:
            kept.append(_open_member(child, [c.path for c in children]))
        except MoegeoError as error:
            errors.append(error)
            found = f" ({error.found})" if error.found else ""
            skipped.append(Skipped(child.relative, f"{error.message}{found}"))
            continue
        held += kept[-1].held
        if held > MOST_HELD:
            kept[-1].let_go()
    kept, left_out = in_order(run, kept)
    return kept, sorted(skipped + left_out, key=lambda item: item.path), errors


def _open_member(child: Checkpoint, siblings: Sequence[Path]) -> Checkpoint:
    """One checkpoint of a run, which may lie deeper; raises where it must be skipped."""
    if TEMPORARY.fullmatch(child.relative):
        raise IncompleteCheckpointError("a temporary name: still being written, or left over")
    inner = inner_folder(child.path) if child.found_layout is None else None
    found = child
    if inner is not None:
        relative = inner.relative_to(child.path.parent).as_posix()
        found = Checkpoint(inner, relative, given=child.given)
    found.require_whole()
    found.step = _step_of(found)
    reason = why_unfinished(child.path, found.step, siblings)
    if reason is not None:
        raise IncompleteCheckpointError(reason)
    return found


def _judge_root(root: Checkpoint, kept: Sequence[Checkpoint]) -> Checkpoint | Skipped:
    """The model that a run saved in its own folder: its last checkpoint, or why not."""
    try:
        root.step = step = _stated_step(root)
        if step is None:
            reason = "the run's final model, without a trainer_state.json to tell its step"
            return Skipped(".", reason, spare=True)
        match = next((c.relative for c in kept if c.step is not None and c.step >= step), None)
        if match:
            return Skipped(".", f"the run's final model, not newer than {match}", spare=True)
        root.require_whole()
        return root
    except MoegeoError as error:
        return Skipped(".", error.message)


def _no_checkpoint(root: Checkpoint, entries: Sequence[Path]) -> MoegeoError:
    """The error for a folder without a readable checkpoint."""
    folder = root.path
    foreign = recognise_foreign(folder)
    if foreign is not None:
        return refuse_foreign(folder, foreign)
    snapshot = find_snapshot(folder) if (folder / "snapshots").is_dir() else None
    if snapshot is not None:
        return NoCheckpointError(
            f"{folder} is a model's folder in the Hub's cache; its snapshots are the checkpoints",
            found=", ".join(list_names(folder / "snapshots")[:4]),
            hint=f"give {snapshot}",
        )
    models = find_models(folder)
    if models:
        return models_below(folder, models)
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


def _none_usable(folder: Path, errors: Sequence[MoegeoError]) -> MoegeoError:
    """The error for a run of which every checkpoint was skipped."""
    foreign = next((error for error in errors if isinstance(error, UnsupportedLayoutError)), None)
    if foreign is not None and all(isinstance(error, UnsupportedLayoutError) for error in errors):
        return foreign
    models = [place for place in find_models(folder) if place.parent != folder]
    if models and all(isinstance(error, IncompleteCheckpointError) for error in errors):
        return models_below(folder, models)
    return IncompleteCheckpointError(
        f"none of the {len(errors)} checkpoints in {folder} is complete",
        found="; ".join(error.message for error in errors[:4]),
        hint=errors[-1].hint if errors else None,
    )
