"""Find the checkpoints and describe the routers of a user's own model (`--model`).

This takes the place of `discover` and `architecture` for such models. A checkpoint is a weights
file (`.safetensors`, or a state dict of torch in `.pt`, `.pth`, `.bin`, `.ckpt`), a folder with one
of them, or a folder in transformers' layout. A config.json beside the weights is read if there is
one. Steps are read from names, as in `step_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER, ADAPTER_FILES
from moegeo_cli.checkpoints.architecture import Architecture, Selection
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.config_keys import EXPERT_KEYS, TOP_K_KEYS, first_value
from moegeo_cli.checkpoints.discover import RunFolder, Skipped
from moegeo_cli.checkpoints.folders import list_folder
from moegeo_cli.checkpoints.nesting import find_runs, several_runs_error
from moegeo_cli.checkpoints.opening import detect_layout
from moegeo_cli.checkpoints.patterns import compile_pattern
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.step_names import has_step_or_epoch, parse_step, read_name
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    UnsupportedLayoutError,
    UsageError,
)
from moegeo_cli.scorings import all_scorings, names_in_configs

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Files of a training's state that hold no model.
_OTHERS = re.compile(
    r"(?:.*[-_.])?(?:optim(?:izer)?|sched(?:uler)?|rng|scaler|training_args|args|probe|captures?)"
    r"(?:[-_.].*)?"
)


def open_own_run(path: Path | str) -> RunFolder:
    """Find the checkpoints of a user's own model under `path`.

    Raises:
        PathError: `path` does not exist or is unreadable.
        NoCheckpointError: `path` holds no weights, several runs, or no checkpoint with a step.
        IncompleteCheckpointError: no checkpoint is complete.
        UnsupportedLayoutError: an adapter without the model's weights, or one adapter beside
            several checkpoints.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return _single(root, root.parent, root.stem)
    entries = list_folder(root)
    name = root.resolve().name or str(root)
    members = [entry for entry in entries if entry.is_dir() and _weights_of(entry)]
    files = [entry for entry in entries if _is_weights(entry)]
    layout = detect_layout(root)
    if layout == ADAPTER and not members and not files:
        raise UnsupportedLayoutError(
            f"{root} is an adapter of a model of your own, without that model's weights",
            found=", ".join(entry.name for entry in entries[:8]),
            hint="put both into one folder: the state dict and the adapter's two files",
        )
    if layout not in (None, ADAPTER) and not members:
        return _single(_weights_of(root) or root, root, name)
    if len(files) == 1 and not members:
        return _single(files[0], root, name)
    found: list[tuple[Path, Path]] = [(entry, _weights_of(entry) or entry) for entry in members]
    found += [(file, file) for file in files]
    if not found:
        runs = find_runs(root, _has_step)
        if len(runs) == 1:
            return open_own_run(runs[0].path)
        if runs:
            raise several_runs_error(root, runs)
        raise NoCheckpointError(
            f"{root} holds no weights",
            found=", ".join(entry.name for entry in entries[:8]) or "an empty folder",
            hint=f"give a state dict ({', '.join(SUFFIXES)}), or a folder of them",
        )
    if layout == ADAPTER and files:
        raise UnsupportedLayoutError(
            f"{root} holds {len(files)} checkpoints and one adapter: for which one is not known",
            found=", ".join(entry.name for entry in files[:8]),
            hint="give each checkpoint its own folder, and put the adapter into that of its model",
        )
    return _run(root, name, found)


def _single(weights: Path, folder: Path, name: str) -> RunFolder:
    checkpoint = Checkpoint(weights, step=parse_step(name), own=True)
    _ = checkpoint.files
    return RunFolder(name, folder, True, (checkpoint,))


def _run(root: Path, name: str, found: Sequence[tuple[Path, Path]]) -> RunFolder:
    """A run of several checkpoints, sorted by step.

    Incomplete checkpoints, and those without a step, are skipped with a reason.

    Args:
        root: the run's folder.
        name: its name for reports.
        found: (entry of the folder, weights file or folder to open).
    """
    kept: list[Checkpoint] = []
    skipped: list[Skipped] = []
    names = {entry: read_name(entry.stem if entry.is_file() else entry.name) for entry, _ in found}
    epochs = all(parts.step is None for parts in names.values())  # then epochs give the order
    for entry, weights in found:
        step = names[entry].epoch if epochs else names[entry].step
        checkpoint = Checkpoint(weights, entry.name, step=step, own=True)
        try:
            _ = checkpoint.files
        except MoegeoError as error:
            skipped.append(Skipped(entry.name, error.message))
            continue
        same = [c.relative for c in kept if c.step == step]
        if step is None or same:
            reason = "no step in its name" if step is None else f"the same step as {same[0]}"
            skipped.append(Skipped(entry.name, reason, redundant=True))
            continue
        kept.append(checkpoint)
    if not kept:
        words = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:4])
        kind = NoCheckpointError if "no step" in words else IncompleteCheckpointError
        raise kind(
            f"none of the {len(skipped)} checkpoints in {root} can be used",
            found=words,
            hint="give one of them, or put the step into each name: step-100.pt",
        )
    kept.sort(key=lambda checkpoint: checkpoint.step or 0)
    return RunFolder(name, root, False, tuple(kept), tuple(skipped))


def _has_step(entry: Path) -> bool:
    """Whether an entry is a checkpoint with a step or an epoch in its name."""
    if not (_is_weights(entry) or (entry.is_dir() and _weights_of(entry))):
        return False
    return has_step_or_epoch(entry.stem if entry.is_file() else entry.name)


def _weights_of(folder: Path) -> Path | None:
    """What to open: the folder itself in transformers' layout, else its only weights file."""
    try:
        layout = detect_layout(folder)
        if layout == ADAPTER:
            return None
        if layout is not None and (layout.endswith("sharded") or is_there(folder / "config.json")):
            return folder
        files = [entry for entry in folder.iterdir() if _is_weights(entry)]
    except OSError:
        return None
    return files[0] if len(files) == 1 else None


def _is_weights(path: Path) -> bool:
    return (
        path.suffix in SUFFIXES
        and not path.name.startswith(".")
        and _OTHERS.fullmatch(path.stem) is None
        and path.name not in ADAPTER_FILES
        and path.is_file()
    )


def find_own_routers(index: WeightIndex, pattern: str | None) -> dict[str, tuple[int, ...]]:
    """Find the routers among a checkpoint's tensors.

    Args:
        index: the checkpoint's tensors.
        pattern: a pattern of module names, see `compile_pattern`. It may also match the module
            one level above the matrix. None to look for the names that families use.

    Returns:
        Module path -> shape of its 2-D weight.
    """
    if pattern is None:
        return {r.module: r.shape for r in find_router_tensors(index) if r.main}
    fits = compile_pattern(pattern)
    found = {}
    for name in index.names():
        module = name.rpartition(".")[0]
        plain = unwrap_name(module, inner=False)
        if len(index.shape(name)) == 2 and (fits(plain) or fits(plain.rpartition(".")[0])):
            found[module] = index.shape(name)
    return found


def describe_own(
    name: str,
    config: Mapping[str, Any],
    index: WeightIndex,
    *,
    pattern: str | None,
    top_k: int | None,
    scoring: str | None,
) -> Architecture:
    """Describe the routers of a user's own model by options, config.json and tensors.

    Args:
        name: name of the factory that builds the model.
        config: the parsed config.json; {} where there is none.
        index: the checkpoint's tensors.
        pattern: a pattern of the routers' module names; see `find_own_routers`.
        top_k: K as the user gives it; None to read it from the config.
        scoring: the scoring as the user gives it; None to read it from the config.

    Raises:
        UsageError: an unknown scoring, or K is above the number of experts.
    """
    routers = find_own_routers(index, pattern)
    stated = first_value(config, EXPERT_KEYS)
    experts = stated if type(stated) is int and stated > 1 else 0
    experts = experts or min((shape[0] for shape in routers.values()), default=0)
    chosen = top_k if top_k is not None else first_value(config, TOP_K_KEYS)
    chosen = chosen if type(chosen) is int and chosen > 0 else None
    if top_k is not None and (top_k < 1 or (experts and top_k > experts)):
        raise UsageError("--top-k is impossible", found=f"{top_k} of {experts} experts")
    asked = scoring if scoring is not None else config.get("scoring_func")
    if asked is not None and asked not in {**names_in_configs(), **all_scorings()}:
        raise UsageError(
            f"the scoring {asked!r} is not known",
            hint=f"--scoring, or scoring_func in config.json: {', '.join(names_in_configs())}",
        )
    return Architecture(
        model_type=name,
        text_type=name,
        known=False,
        experts=experts,
        top_k=chosen,
        hidden=None,
        layers=len(routers) or None,
        moe_layers=None,
        scoring=None if asked is None else names_in_configs().get(asked, asked),
        selection=Selection(),
        unselected_gradient="verify",
        router_rows=experts,
        notes=(f"a model of your own, built by {name}",),
    )
