"""Find the checkpoints of a run, in order, and tell the whole ones from the rest.

A path is one checkpoint (config.json beside weights) or a folder of them, named after their
steps. A Trainer writes `trainer_state.json` last, so the newest checkpoint of a run whose
others have it is still being written as long as it lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.folders import (
    check_complete,
    find_config,
    given_config,
    list_folder,
    read_config,
    read_trainer_state,
)
from moegeo_cli.checkpoints.headers import list_names
from moegeo_cli.checkpoints.hub_cache import find_snapshot
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, recognise_foreign, refuse_foreign
from moegeo_cli.checkpoints.nesting import (
    find_runs,
    inner_folder,
    several_models,
    several_runs,
    several_stages,
    step_folder,
)
from moegeo_cli.checkpoints.opening import detect_layout, open_weights
from moegeo_cli.checkpoints.sentinels import why_unfinished
from moegeo_cli.checkpoints.step_names import (
    TEMPORARY,
    is_checkpoint_name,
    parse_step,
    read_name,
)
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    UnsupportedLayoutError,
)

__all__ = [
    "CheckpointFolder",
    "RunFolder",
    "Skipped",
    "check_complete",
    "open_run",
    "parse_step",
    "read_config",
    "read_trainer_state",
]

# parts of one checkpoint, accelerate's and others', which are no checkpoints themselves
_PART_NAME = re.compile(r"(?:pytorch_model_fsdp|optimizer)_\d+|model_and_optim|model")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """One complete checkpoint; `relative` is its path within the run ("." for a single one).

    `config` is the folder of its config.json where that is not its own.
    """

    path: Path
    step: int | None
    relative: str
    layout: str = "safetensors"
    config: Path | None = None

    @property
    def config_folder(self) -> Path:
        """The folder of its config.json."""
        return self.config or self.path


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a run that looked like a checkpoint and was left out.

    A spare one is no further point of the run's course: a copy of a checkpoint, or the final model.
    """

    path: str
    reason: str
    spare: bool = False


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run: its complete checkpoints by step, and what was left out.

    `trainer_state` is that of the newest checkpoint, where there is one. `config` is the
    folder that `--config` gave for checkpoints that have no config.json of their own.
    """

    name: str
    path: Path
    is_single: bool
    checkpoints: tuple[CheckpointFolder, ...]
    skipped: tuple[Skipped, ...] = ()
    trainer_state: dict[str, Any] | None = None
    config: Path | None = None

    @property
    def newest(self) -> CheckpointFolder:
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
    children = [entry for entry in entries if _is_candidate(entry)]
    own_layout = detect_layout(folder)
    if own_layout is not None:  # further adapters that peft saves below the one at work
        children = [c for c in children if parse_step(c.name) or detect_layout(c) != ADAPTER]
    if own_layout is not None and not any(detect_layout(child) for child in children):
        return _open_single(folder, folder, name, given)
    inner = inner_folder(folder) if own_layout is None and not _has_steps(children) else None
    if inner is not None:
        return _open_single(folder, inner, name, given)
    if own_layout is None and not _has_steps(children):
        runs = [run for run in find_runs(folder) if run.path not in children]
        if len(runs) == 1 and not children:
            return open_run(runs[0].path, config)
        if runs:
            raise several_runs(folder, runs)
    if not children:
        raise _no_checkpoint(folder, entries)
    kept, skipped, errors = _judge(folder, children, given)
    if own_layout is not None:
        final = _judge_root(folder, kept, given)
        if isinstance(final, Skipped):
            skipped.append(final)
        else:
            kept.append(final)
    if not kept:
        raise _none_usable(folder, errors)
    state = read_trainer_state(kept[-1].path)
    return RunFolder(name, folder, False, tuple(kept), tuple(skipped), state, given)


def _has_steps(entries: Sequence[Path]) -> bool:
    return any(parse_step(entry.name) is not None for entry in entries)


def _is_candidate(entry: Path) -> bool:
    """Whether an entry of a run folder may be a checkpoint."""
    try:
        if not entry.is_dir():
            # A link to a checkpoint that is gone is missed, not overlooked.
            return entry.is_symlink() and not entry.exists() and parse_step(entry.name) is not None
        layout = detect_layout(entry)
        if layout == DISTRIBUTED and _PART_NAME.fullmatch(entry.name):
            return False
        return (
            layout is not None
            or is_checkpoint_name(entry.name)
            or TEMPORARY.fullmatch(entry.name) is not None
            or (parse_step(entry.name) is not None and inner_folder(entry) is not None)
        )
    except OSError:
        return False


def _open_single(given_path: Path, folder: Path, name: str, given: Path | None) -> RunFolder:
    """A run of one checkpoint, which must be complete; it may lie below the path that was given."""
    config = find_config(folder, given)
    layout = check_complete(folder, config)
    state = read_trainer_state(folder)
    step = _step_of(folder, state)
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
    relative = "." if folder == given_path else folder.relative_to(given_path).as_posix()
    checkpoint = CheckpointFolder(folder, step, relative, layout, config)
    return RunFolder(name, folder, True, (checkpoint,), (), state, given)


def _list_quietly(folder: Path) -> list[Path]:
    try:
        return list_folder(folder)
    except MoegeoError:
        return []


def _step_of(folder: Path, state: dict[str, Any] | None) -> int | None:
    """The step by the folder's name, or that of the one that it lies deep in, else by the state."""
    step = parse_step(step_folder(folder).name)
    if step is None and state is not None:
        stated = state.get("global_step")
        step = stated if type(stated) is int and stated >= 0 else None
    return step


def _judge(
    run: Path, children: Sequence[Path], given: Path | None
) -> tuple[list[CheckpointFolder], list[Skipped], list[MoegeoError]]:
    """Sort a run's candidates into complete checkpoints and skipped ones."""
    kept: list[CheckpointFolder] = []
    skipped: list[Skipped] = []
    errors: list[MoegeoError] = []
    for child in children:
        try:
            kept.append(_open_member(child, children, given))
        except MoegeoError as error:
            errors.append(error)
            found = f" ({error.found})" if error.found else ""
            skipped.append(Skipped(child.name, f"{error.message}{found}"))
    if all(checkpoint.step is None for checkpoint in kept):
        kept = [replace(c, step=read_name(c.relative).epoch) for c in kept]  # an epoch orders too
    unordered = [checkpoint for checkpoint in kept if checkpoint.step is None]
    numbered = [checkpoint for checkpoint in kept if checkpoint.step is not None]
    if not numbered and len(unordered) > 1:
        raise several_models(run, [checkpoint.relative for checkpoint in unordered])
    _refuse_stages(run, numbered)
    if numbered:
        skipped += [
            Skipped(checkpoint.relative, "no step in its name or state", spare=True)
            for checkpoint in unordered
        ]
        kept = []
        # Names that tell a step win over links and copies such as `latest` and `best`.
        for checkpoint in sorted(
            numbered,
            key=lambda c: (c.step, parse_step(c.relative) is None, c.path.is_symlink(), c.relative),
        ):
            if kept and kept[-1].step == checkpoint.step:
                reason = f"the same step as {kept[-1].relative}"
                skipped.append(Skipped(checkpoint.relative, reason, spare=True))
            else:
                kept.append(checkpoint)
    return kept, sorted(skipped, key=lambda item: item.path), errors


def _refuse_stages(run: Path, numbered: Sequence[CheckpointFolder]) -> None:
    """Stages of a training count their steps anew: together they are no run."""
    stages: dict[str, list[CheckpointFolder]] = {}
    for checkpoint in sorted(numbered, key=lambda c: (c.step or 0, c.relative)):
        stage = read_name(checkpoint.relative.partition("/")[0]).stage or "no stage"
        stages.setdefault(stage, []).append(checkpoint)
    if len(stages) > 1:
        raise several_stages(
            run, [(stage, [c.relative for c in held]) for stage, held in sorted(stages.items())]
        )


def _open_member(child: Path, siblings: Sequence[Path], given: Path | None) -> CheckpointFolder:
    """One checkpoint of a run; raises where it must be skipped."""
    if TEMPORARY.fullmatch(child.name):
        raise IncompleteCheckpointError("a temporary name: still being written, or left over")
    folder = child if detect_layout(child) is not None else inner_folder(child) or child
    config = find_config(folder, given)
    layout = check_complete(folder, config)
    step = _step_of(folder, read_trainer_state(folder))
    reason = why_unfinished(child, step, siblings)
    if reason is not None:
        raise IncompleteCheckpointError(reason)
    relative = folder.relative_to(child.parent).as_posix()
    return CheckpointFolder(folder, step, relative, layout, config)


def _judge_root(
    folder: Path, kept: Sequence[CheckpointFolder], given: Path | None
) -> CheckpointFolder | Skipped:
    """The model that a run saved in its own folder: its last checkpoint, or why not."""
    try:
        state = read_trainer_state(folder)
        step = state.get("global_step") if state else None
        if type(step) is not int or step < 0:
            reason = "the run's final model, without a trainer_state.json to tell its step"
            return Skipped(".", reason, spare=True)
        match = next((c.relative for c in kept if c.step is not None and c.step >= step), None)
        if match:
            return Skipped(".", f"the run's final model, not newer than {match}", spare=True)
        config = find_config(folder, given)
        return CheckpointFolder(folder, step, ".", check_complete(folder, config), config)
    except MoegeoError as error:
        return Skipped(".", error.message)


def _no_checkpoint(folder: Path, entries: Sequence[Path]) -> MoegeoError:
    """The error for a folder without a readable checkpoint."""
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
    names = [entry.name for entry in entries]
    if "config.json" in names or any("-of-" in name for name in names):
        try:
            open_weights(folder)
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
    return IncompleteCheckpointError(
        f"none of the {len(errors)} checkpoints in {folder} is complete",
        found="; ".join(error.message for error in errors[:4]),
        hint=errors[-1].hint if errors else None,
    )
