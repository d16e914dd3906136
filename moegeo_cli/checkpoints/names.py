"""Which of the saved tensors are the model's, and under which names transformers knows them.

A training loop saves more than a model, and puts the model somewhere in a nested state dict.
torch notes each tensor's place there, so nothing is guessed:

1. What lies below a key that names an optimizer is left out.
2. The model is what lies below the key `model` (or another of `MODEL_KEYS`), whatever lies
   above that key. Where no such key is, it is what lies at the top of the state dict.
3. A wrapper's prefix (`_orig_mod.`, `module.`, ...) goes where every name of the model has it.
4. torchtitan's names become those of transformers where its own key map is known
   (`[torchtitan]` of families/*.toml) and covers every name.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.families import read_families
from moegeo_cli.checkpoints.metadata import SavedState
from moegeo_cli.errors import MoegeoError, NoCheckpointError, UnsupportedLayoutError

MODEL_KEYS = ("model", "module", "model_state_dict", "state_dict", "model_state")
OPTIMIZER = re.compile(r"(?:optim|optimizer|optimizers|opt|optimizer_state_dict)(?:_\d+)?")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")
# By these two torchtitan's models are told from all others.
_TITAN_MARKS = ("tok_embeddings.weight", "attention_norm.weight")
_TITAN_HINT = (
    "convert it with torchtitan's scripts/checkpoint_conversion/convert_to_hf.py, or train with "
    "checkpoint.last_save_in_hf, and give that folder"
)


@dataclass(frozen=True, slots=True)
class Family:
    """Names of one family of torchtitan's models.

    `names` maps a name of theirs to that of transformers and, where several become one, to the
    place among them; `{}` stands for a layer. `ignored` are prefixes that transformers leaves
    out as well. `zero` are names that have no place there and change nothing only while they
    are zero. `model_types` are those of the config.
    """

    model_types: tuple[str, ...]
    ignored: tuple[str, ...]
    zero: tuple[str, ...]
    names: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Naming:
    """The model's tensors: its name -> the names that they were saved under.

    Several saved tensors are joined along their second dimension, as transformers keeps two
    matrices of each expert in one. `left_out` counts what else was saved, by its first key.
    `obstacle` is why no model can be given these names; `family` is torchtitan's, where it is,
    and `zero` are saved names whose values must be zero for that.
    """

    sources: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, int]
    family: Family | None = None
    zero: tuple[str, ...] = ()
    obstacle: MoegeoError | None = None


def name_tensors(state: SavedState, folder: Path) -> Naming:
    """Apply the rules above.

    Args:
        state: what was saved.
        folder: where, for errors.

    Raises:
        NoCheckpointError: no model in it, an optimizer's state for instance.
        UnsupportedLayoutError: several models.
    """
    models: dict[tuple[str, ...], dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    for saved in (*state.tensors, *state.objects):
        keys = tuple(str(key) for key in state.paths.get(saved, (saved,)))
        place = _place(keys)
        if place is None or saved not in state.tensors:
            left_out[keys[0] if len(keys) > 1 else saved.partition(".")[0]] += 1
        else:
            models.setdefault(place, {})[".".join(keys[len(place) :])] = saved
    below = [place for place in models if place]
    if len(below) > 1:
        raise UnsupportedLayoutError(
            f"{folder.name} holds {len(below)} models, and moegeo measures one",
            found=", ".join(".".join(place) for place in below[:8]),
            hint="save the one to measure alone",
        )
    chosen = models.get(below[0] if below else ())
    if not chosen:
        raise NoCheckpointError(
            f"{folder.name} holds no model's tensors",
            found=", ".join(f"{key} ({count})" for key, count in sorted(left_out.items())[:8])
            or "no tensor at all",
            hint="give the folder of the model, which lies beside the optimizer's",
        )
    left_out.update({key: len(found) for key, found in _tops(models, below).items()})
    return _translate(_unwrap(chosen), dict(sorted(left_out.items())), folder)


def _place(keys: tuple[str, ...]) -> tuple[str, ...] | None:
    """Where the model lies that a tensor belongs to; None for what belongs to none."""
    for depth, key in enumerate(keys[:-1], 1):
        if OPTIMIZER.fullmatch(key):
            return None
        if key in MODEL_KEYS:
            return keys[:depth]
    if len(keys) > 1 or OPTIMIZER.fullmatch(keys[0].partition(".")[0]):
        return None
    return ()


def _tops(
    models: Mapping[tuple[str, ...], dict[str, str]], below: list[tuple[str, ...]]
) -> dict[str, list[str]]:
    """Tensors at the top of a state dict that holds its model elsewhere, by their first word."""
    found: dict[str, list[str]] = {}
    for name in models.get((), {}) if below else ():
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def _unwrap(names: dict[str, str]) -> dict[str, str]:
    """Take off the prefixes of wrappers that all names share."""
    while True:
        shared = next((w for w in WRAPPERS if all(name.startswith(w) for name in names)), None)
        if shared is None:
            return names
        names = {name.removeprefix(shared): saved for name, saved in names.items()}


def _translate(names: dict[str, str], left_out: dict[str, int], folder: Path) -> Naming:
    """Give torchtitan's tensors the names of transformers; leave all others as they are."""
    plain = {name: (saved,) for name, saved in sorted(names.items())}
    if not all(any(name.endswith(mark) for name in names) for mark in _TITAN_MARKS):
        return Naming(plain, left_out)
    unknown: dict[int, str] = {}
    for family in torchtitan_families():
        parts: dict[str, dict[int, str]] = {}
        strangers, zero = [], []
        for name in names:
            pattern, layer = _pattern(name)
            if pattern in family.names:
                target, part = family.names[pattern]
                parts.setdefault(target.replace("{}", layer), {})[part] = names[name]
            elif pattern in family.zero:
                zero.append(names[name])
            elif not name.startswith(family.ignored):
                strangers.append(name)
        if not strangers:
            sources = {
                name: tuple(saved for _, saved in sorted(joined.items()))
                for name, joined in sorted(parts.items())
            }
            return Naming(sources, left_out, family, tuple(zero))
        unknown.setdefault(len(strangers), strangers[0])
    error = UnsupportedLayoutError(
        f"{folder.name} holds a model of torchtitan's of whose names moegeo has no map",
        found=f"for instance {unknown[min(unknown)]}; mapped are {_mapped()}",
        hint=_TITAN_HINT,
    )
    return Naming(plain, left_out, obstacle=error)


def refuse_other_type(family: Family, model_type: str, folder: Path) -> MoegeoError | None:
    """The error for a config of another model than torchtitan's names are of."""
    if model_type in family.model_types:
        return None
    types = " or ".join(family.model_types)
    return UnsupportedLayoutError(
        f"the config is of a {model_type}, and {folder.name} of a {types}",
        found="torchtitan's names of that model",
        hint="give that model's config.json with --config",
    )


@functools.cache
def torchtitan_families() -> tuple[Family, ...]:
    """The key maps of the families that torchtitan has."""
    families = []
    for entry in (f["torchtitan"] for f in read_families() if "torchtitan" in f):
        names: dict[str, tuple[str, int]] = {}
        for target, alternatives in entry["names"].items():
            for alternative in alternatives:
                for place, part in enumerate(alternative.split(" + ")):
                    names[part] = (target, place)
        families.append(
            Family(
                model_types=tuple(entry["model_types"]),
                ignored=tuple(entry["ignored"]),
                zero=tuple(entry["zero"]),
                names=names,
            )
        )
    return tuple(families)


def _pattern(name: str) -> tuple[str, str]:
    """A name of torchtitan's with its layer as `{}`, and that layer."""
    match = re.match(r"layers\.(\d+)(?=\.)", name)
    return (f"layers.{{}}{name[match.end() :]}", match[1]) if match else (name, "")


def _mapped() -> str:
    found: Iterable[str] = (t for family in torchtitan_families() for t in family.model_types)
    return ", ".join(sorted(found))
