"""Which of the saved tensors are the model's, and under which names transformers knows them.

A training loop saves more than a model, and puts the model somewhere in a nested state dict.
torch notes each tensor's place there, so nothing is guessed:

1. What lies below a key that names an optimizer is left out.
2. The model is what lies below the key `model` (or another of `MODEL_KEYS`), whatever lies
   above that key. Where no such key is, it is what lies at the top of the state dict.
3. A wrapper's prefix (`_orig_mod.`, `module.`, ...) goes where every name of the model has it.
4. The names of torchtitan and Megatron-core become those of transformers where a family's key map
   (`key_maps`) covers every name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.key_maps import Family, Saved, Source, plain, split_name, translate
from moegeo_cli.checkpoints.metadata import SavedState
from moegeo_cli.errors import MoegeoError, NoCheckpointError, UnsupportedLayoutError

MODEL_KEYS = ("model", "module", "model_state_dict", "state_dict", "model_state")
OPTIMIZER = re.compile(r"(?:optim|optimizer|optimizers|opt|optimizer_state_dict)(?:_\d+)?")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")
# By these two torchtitan's models are told from all others,
_TITAN_MARKS = ("tok_embeddings.weight", "attention_norm.weight")
# and by this one Megatron-core's. That saves each tensor of all layers in one, or layer by layer.
_MEGATRON_MARK = "embedding.word_embeddings.weight"
_LAYERS = "decoder.layers."
_STACKED = re.compile(re.escape(_LAYERS) + r"(?!\d+\.)")


@dataclass(frozen=True, slots=True)
class Naming:
    """The model's tensors: its name -> what they are made of.

    Several are joined along their second dimension, as transformers keeps two matrices of each
    expert in one. `left_out` counts what else was saved, by its first key. `obstacle` is why no
    model can be given these names; `family` is whose key map it was, where there was one, and
    `zero` are saved names whose values must be zero for that.
    """

    sources: Mapping[str, tuple[Source, ...]]
    left_out: Mapping[str, int]
    family: Family | None = None
    zero: tuple[str, ...] = ()
    obstacle: MoegeoError | None = None


def name_tensors(state: SavedState, folder: Path, model_type: str | None = None) -> Naming:
    """Apply the rules above.

    Args:
        state: what was saved.
        folder: where, for errors.
        model_type: of the config, where it is known.

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
    return _translate(_unwrap(chosen), dict(sorted(left_out.items())), state, model_type, folder)


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


def _translate(
    names: dict[str, str],
    left_out: dict[str, int],
    state: SavedState,
    model_type: str | None,
    folder: Path,
) -> Naming:
    """Give the tensors of other frameworks transformers' names; leave all others as they are."""
    as_saved = {name: (Source(saved),) for name, saved in sorted(names.items())}
    if all(any(name.endswith(mark) for name in names) for mark in _TITAN_MARKS):
        found = translate(plain(names), "torchtitan", model_type, folder)
    elif _MEGATRON_MARK in names:
        found = translate(_single_layers(names, state), "megatron", model_type, folder)
    else:
        return Naming(as_saved, left_out)
    if isinstance(found, MoegeoError):
        return Naming(as_saved, left_out, obstacle=found)
    return Naming(found.sources, left_out, found.family, found.zero)


def _single_layers(names: dict[str, str], state: SavedState) -> list[Saved]:
    """Megatron's tensors, those of all layers in one as one of each layer."""
    found = plain({n: saved for n, saved in names.items() if not _STACKED.match(n)})
    for name, saved in names.items():
        match = _STACKED.match(name)
        for layer in range(state.tensors[saved].shape[0] if match else 0):
            single = f"{_LAYERS}{layer}.{name.removeprefix(_LAYERS)}"
            found.append(Saved(name, *split_name(single), Source(saved, layer)))
    return found
