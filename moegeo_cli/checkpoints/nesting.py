"""Find runs and checkpoints in subfolders of the path that a user gives. Part of discovery.

Some trainers put a run into a folder named by version and date (ms-swift:
`v0-DATE/checkpoint-N`). Others put a checkpoint's weights into subfolders of its step folder
(verl: `global_step_N/actor/huggingface`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.folders import list_folder
from moegeo_cli.checkpoints.indexes import read_json
from moegeo_cli.checkpoints.opening import LAYOUT_FILES, detect_layout
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.step_names import has_step_or_epoch, parse_step
from moegeo_cli.errors import MoegeoError, NoCheckpointError

# Subfolders of a step folder in which trainers save a model in transformers' layout, most likely
# first.
INNER = (
    "actor/huggingface",   # verl
    "actor",               # verl, after its model_merger
    "huggingface", "hf",   # what exporters name their output
    "model/consolidated",  # NeMo AutoModel
    "policy/weights",      # NeMo-RL
    "policy",              # SkyRL
    "merged_hf_model",     # verl's documents
    "hf_ckpt",             # VeOmni
    "consolidated", "weights", "hf_model", "model",
)  # fmt: skip
DEPTH = 3  # levels of subfolders that are searched
MOST_ENTRIES = 2000  # folders that are searched in all
SHOWN = 8  # entries that an error message lists


def inner_folder(folder: Path) -> Path | None:
    """The subfolder of a step folder that holds a model in transformers' layout, or None."""
    if not folder.is_dir():
        return None
    for name in INNER:
        place = folder / name
        if is_there(place / "config.json") and detect_layout(place) in LAYOUT_FILES.values():
            return place
    return None


def step_folder(folder: Path) -> Path:
    """The folder whose name gives a checkpoint's step: `folder` itself, or one above it."""
    place = folder.resolve()
    for name in INNER:
        parts = len(Path(name).parts)
        above = place.parents[min(parts, len(place.parents)) - 1]
        if place.as_posix().endswith(f"/{name}") and has_step_or_epoch(above.name):
            return above
    return place


@dataclass(frozen=True, slots=True)
class NestedRun:
    """A run in a subfolder.

    Attributes:
        path: its folder.
        members: names of its checkpoints, in order of their steps.
    """

    path: Path
    members: tuple[str, ...]

    def describe(self, top: Path) -> str:
        """Its path below `top`, its number of checkpoints and its range of steps, in words."""
        steps = [parse_step(name) for name in self.members]
        known = [step for step in steps if step is not None]
        words = _count(len(self.members), "checkpoint")
        if known:
            words += f", step {min(known)}" + (f" to {max(known)}" if len(known) > 1 else "")
        return f"{self.path.relative_to(top)} ({words})"


def find_runs(folder: Path, is_member: Callable[[Path], bool] | None = None) -> list[NestedRun]:
    """The runs in subfolders of a folder. Links are not followed.

    Args:
        folder: where to look.
        is_member: whether an entry is a checkpoint with a step; None to look for checkpoints in
            transformers' layout.

    Returns:
        The runs by depth, then by name.
    """
    is_member = is_member or _is_member
    left = MOST_ENTRIES
    level = [folder]
    found: list[NestedRun] = []
    for _ in range(DEPTH):
        deeper: list[Path] = []
        for place in level:
            entries = [e for e in _entries(place) if not e.is_symlink() and e.is_dir()]
            left -= len(entries)
            if left < 0:
                return found
            for entry in entries:
                members = tuple(e.name for e in _entries(entry) if is_member(e))
                if members:
                    found.append(NestedRun(entry, tuple(sorted(members, key=_order))))
                elif detect_layout(entry) is None and not has_step_or_epoch(entry.name):
                    deeper.append(entry)
        level = deeper
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list_folder(folder)
    except MoegeoError:
        return []


def _is_member(entry: Path) -> bool:
    if not has_step_or_epoch(entry.name) or not entry.is_dir():
        return False
    return detect_layout(entry) is not None or inner_folder(entry) is not None


def find_models(folder: Path) -> list[Path]:
    """The models in transformers' layout in subfolders, sorted by path. Links are not followed."""
    level, left = [folder], MOST_ENTRIES
    found: list[Path] = []
    for _ in range(DEPTH):
        level = [e for place in level for e in _entries(place) if not e.is_symlink() and e.is_dir()]
        left -= len(level)
        if left < 0:
            break
        found += [e for e in level if _is_model(e)]
        level = [e for e in level if not _is_model(e)]
    return sorted(found)


def _is_model(folder: Path) -> bool:
    return is_there(folder / "config.json") and detect_layout(folder) in LAYOUT_FILES.values()


def _order(name: str) -> tuple[int, str]:
    step = parse_step(name)
    return (-1 if step is None else step, name)


def several_runs_error(
    folder: Path, runs: Sequence[NestedRun], models: Sequence[str] = ()
) -> NoCheckpointError:
    """The error for a folder that holds several runs: lists them and the command for one.

    Args:
        folder: the path that the user gave.
        runs: the runs below it.
        models: names of further models in it.
    """
    newest = runs[-1].path
    words = [run.describe(folder) for run in runs] + list(_describe_models(folder, models))
    more = f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    counts = _count(len(runs), "run") + (f" and {_count(len(models), 'model')}" if models else "")
    return NoCheckpointError(
        f"{folder} holds {counts}",
        found="; ".join(words[:SHOWN]) + more,
        hint=f"give one of them: moegeo analyze {shlex.quote(str(newest))}",
        context={"runs": [str(run.path) for run in runs]},
    )


def several_models_error(folder: Path, names: Sequence[str]) -> NoCheckpointError:
    """The error for several models without a step: lists them and the commands for them."""
    first, last = (shlex.quote(str(folder / name)) for name in (names[0], names[-1]))
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return NoCheckpointError(
        f"{folder} holds {len(names)} checkpoints without a step, so they have no order",
        found="; ".join(_describe_models(folder, names[:SHOWN])) + more,
        hint=f"moegeo analyze {last}, or moegeo compare {first} {last}; the checkpoints of a run "
        "are named checkpoint-STEP",
    )


def models_below_error(folder: Path, models: Sequence[Path]) -> NoCheckpointError:
    """The error for models in subfolders with unknown names: lists where they lie."""
    names = [model.relative_to(folder).as_posix() for model in models]
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    words = "a model lies" if len(names) == 1 else f"{len(names)} models lie"
    return NoCheckpointError(
        f"{folder} holds no checkpoint; {words} deeper in it",
        found="; ".join(_describe_models(folder, names[:SHOWN])) + more,
        hint=f"give {'it' if len(names) == 1 else 'one of them'}: "
        f"moegeo analyze {shlex.quote(str(models[-1]))}",
        context={"models": [str(model) for model in models[:64]]},
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def several_stages_error(
    folder: Path, stages: Sequence[tuple[str, Sequence[str]]]
) -> NoCheckpointError:
    """The error for training stages in one folder, each of which counts its own steps.

    Args:
        folder: the run's folder.
        stages: (name of the stage, names of its checkpoints by step).
    """
    name, members = stages[-1]
    words = [
        f"{stage} ({_count(len(held), 'checkpoint')}, "
        f"{' to '.join(dict.fromkeys((held[0], held[-1])))})"
        for stage, held in stages
    ]
    place = shlex.quote(str(folder))
    link = f"mkdir {name} && ln -s ../{members[-1]} {name}/"
    return NoCheckpointError(
        f"{folder} holds {len(stages)} stages of a training, each with steps of its own",
        found="; ".join(words),
        hint="give one checkpoint, or a folder with links to the checkpoints of one stage: "
        f"cd {place} && {link}",
    )


def _describe_models(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Each model's name, with its model type where config.json has one."""
    for name in names:
        kind = None
        try:
            document = read_json(folder / name / "config.json", 16_000_000)
            kind = document.get("model_type") if isinstance(document, dict) else None
        except MoegeoError:
            pass
        yield f"{name} ({kind})" if isinstance(kind, str) and kind.isprintable() else name
