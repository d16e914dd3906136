"""Select the model's tensors in a torch.distributed checkpoint, and give them transformers' names.

A training loop saves more than a model, and puts the model somewhere in a nested state dict. torch
records each tensor's path in it. `DistributedWeights` applies these rules:

1. Tensors below a key that names an optimizer are left out.
2. The model is below the key `model` (or another of `MODEL_KEYS`), at any depth. Without such a
   key, the model is at the top of the state dict.
3. A wrapper's prefix (`_orig_mod.`, `module.`, ...) is removed if every name of the model has it.
4. Names of torchtitan and Megatron-core become those of transformers if the key map of a family
   (`key_maps`) has every name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.key_maps import (
    KeyMap,
    Saved,
    Source,
    saved_tensors,
    split_name,
    translate,
)
from moegeo_cli.checkpoints.metadata import SavedState
from moegeo_cli.errors import MoegeoError, NoCheckpointError, UnsupportedLayoutError

MODEL_KEYS = ("model", "module", "model_state_dict", "state_dict", "model_state")
OPTIMIZER = re.compile(r"(?:optim|optimizer|optimizers|opt|optimizer_state_dict)(?:_\d+)?")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")
# Only torchtitan's models have both names,
_TITAN_MARKS = ("tok_embeddings.weight", "attention_norm.weight")
# and only Megatron-core's have this one. Megatron-core saves a tensor for each layer, or one tensor
# with all layers stacked along the first dimension.
_MEGATRON_MARK = "embedding.word_embeddings.weight"
_LAYERS = "decoder.layers."
_STACKED = re.compile(re.escape(_LAYERS) + r"(?!\d+\.)")


@dataclass(frozen=True, slots=True)
class Naming:
    """The model's tensors.

    Attributes:
        sources: transformers' name -> the saved tensors that it is made of. Several are joined
            along the second dimension (gate and up of every expert).
        left_out: number of other saved tensors, by their first key.
        key_map: the key map that was used; None for names that are transformers' already.
        zero: saved tensors that transformers' model lacks; they must be 0.
        obstacle: the error that no key map has all names; else None.
    """

    sources: Mapping[str, tuple[Source, ...]]
    left_out: Mapping[str, int]
    key_map: KeyMap | None = None
    zero: tuple[str, ...] = ()
    obstacle: MoegeoError | None = None


def name_tensors(state: SavedState, folder: Path, model_type: str | None = None) -> Naming:
    """Apply the rules of this module.

    Args:
        state: the saved tensors and their paths.
        folder: the checkpoint's folder, for errors.
        model_type: `model_type` of the config; None where not known.

    Raises:
        NoCheckpointError: the checkpoint holds no model (only an optimizer's state, say).
        UnsupportedLayoutError: the checkpoint holds several models.
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
    left_out.update({key: len(found) for key, found in _outside(models, below).items()})
    return _translate(_unwrap(chosen), dict(sorted(left_out.items())), state, model_type, folder)


def _place(keys: tuple[str, ...]) -> tuple[str, ...] | None:
    """The keys below which a tensor's model lies; None for a tensor of no model."""
    for depth, key in enumerate(keys[:-1], 1):
        if OPTIMIZER.fullmatch(key):
            return None
        if key in MODEL_KEYS:
            return keys[:depth]
    if len(keys) > 1 or OPTIMIZER.fullmatch(keys[0].partition(".")[0]):
        return None
    return ()


def _outside(
    models: Mapping[tuple[str, ...], dict[str, str]], below: list[tuple[str, ...]]
) -> dict[str, list[str]]:
    """Tensors at the top of a state dict whose model lies below a key: first word -> names."""
    found: dict[str, list[str]] = {}
    for name in models.get((), {}) if below else ():
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def _unwrap(names: dict[str, str]) -> dict[str, str]:
    """Remove wrapper prefixes that all names share."""
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
    """Translate the names of other frameworks to transformers'; keep all other names."""
    as_saved = {name: (Source(saved),) for name, saved in sorted(names.items())}
    if all(any(name.endswith(mark) for name in names) for mark in _TITAN_MARKS):
        found = translate(saved_tensors(names), "torchtitan", model_type, folder)
    elif _MEGATRON_MARK in names:
        found = translate(_single_layers(names, state), "megatron", model_type, folder)
    else:
        return Naming(as_saved, left_out)
    if isinstance(found, MoegeoError):
        return Naming(as_saved, left_out, obstacle=found)
    return Naming(found.sources, left_out, found.key_map, found.zero)


def _single_layers(names: dict[str, str], state: SavedState) -> list[Saved]:
    """Megatron's tensors, with a tensor of all layers split into one for each layer."""
    found = saved_tensors({n: saved for n, saved in names.items() if not _STACKED.match(n)})
    for name, saved in names.items():
        match = _STACKED.match(name)
        for layer in range(state.tensors[saved].shape[0] if match else 0):
            single = f"{_LAYERS}{layer}.{name.removeprefix(_LAYERS)}"
            found.append(Saved(name, *split_name(single), Source(saved, layer)))
    return found
