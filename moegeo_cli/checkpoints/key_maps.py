"""Translate tensor names of torchtitan, Megatron-core and llama.cpp to those of transformers.

The key maps are tables in families/*.toml: [torchtitan], [megatron], [gguf]. A checkpoint belongs
to the family whose key map has every name in it. `names` and `gguf_file` call this module.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.families import read_families
from moegeo_cli.errors import MoegeoError, UnsupportedLayoutError

# Numbers of layers and experts within a name.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Source:
    """A saved tensor, or a part of one, from which a tensor of the model is made.

    Attributes:
        saved: name of the saved tensor.
        layer: index along the first axis, where all layers were saved as one tensor; else None.
        part: which rows, a key of `tensor_parts.PARTS`; None for all.
    """

    saved: str
    layer: int | None = None
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved tensor.

    Attributes:
        name: its name, with the layer's number.
        pattern: the name with `{}` in the place of numbers.
        numbers: these numbers.
        source: what is read for it.
    """

    name: str
    pattern: str
    numbers: tuple[str, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class Target:
    """The tensor of the model that a saved tensor fills, wholly or in part.

    Attributes:
        name: transformers' name, with `{}` for numbers.
        place: position among the saved tensors that are joined for it.
        part: which rows of the saved tensor it takes; None for all.
    """

    name: str
    place: int
    part: str | None


@dataclass(frozen=True, slots=True)
class KeyMap:
    """One framework's names for a family's tensors.

    Attributes:
        framework: a key of `FRAMEWORKS`.
        model_types: the model types that it is for.
        ignored: prefixes of names that transformers leaves out.
        zero: patterns of tensors that transformers' model lacks; they must be 0.
        names: pattern of the framework's name -> what it fills in the model.
        architecture: general.architecture of a GGUF file; else None.
    """

    framework: str
    model_types: tuple[str, ...]
    ignored: tuple[str, ...]
    zero: tuple[str, ...]
    names: Mapping[str, tuple[Target, ...]]
    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A checkpoint's tensors under transformers' names.

    Attributes:
        sources: transformers' name -> the saved tensors that are joined along the second
            dimension for it.
        key_map: the key map that was used.
        zero: names of saved tensors that transformers' model lacks; they must be 0.
    """

    sources: Mapping[str, tuple[Source, ...]]
    key_map: KeyMap
    zero: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework's name in messages, and the hint where no key map fits."""

    name: str
    hint: str


FRAMEWORKS: Mapping[str, Framework] = {
    "torchtitan": Framework(
        "torchtitan",
        "convert it with torchtitan's scripts/checkpoint_conversion/convert_to_hf.py, or train "
        "with checkpoint.last_save_in_hf, and give that folder",
    ),
    "megatron": Framework(
        "Megatron-core",
        'export it with Megatron-Bridge: python -c "from megatron.bridge import AutoBridge; '
        "AutoBridge.from_hf_pretrained('HF_MODEL').export_ckpt('{path}', 'OUT')\"",
    ),
    "gguf": Framework(
        "llama.cpp (GGUF)",
        "give the checkpoint that it was made from, or load it with transformers' "
        "from_pretrained(gguf_file=...) and save_pretrained()",
    ),
}


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """A name with `{}` in the place of its numbers, and these numbers."""
    return _NUMBER.sub("{}", name), tuple(_NUMBER.findall(name))


def saved_tensors(names: Mapping[str, str]) -> list[Saved]:
    """`Saved` of each tensor, from name without wrappers -> saved name."""
    return [Saved(name, *split_name(name), Source(saved)) for name, saved in names.items()]


def translate(
    tensors: Sequence[Saved],
    framework: str,
    model_type: str | None,
    folder: Path,
    *,
    architecture: str | None = None,
) -> Translation | MoegeoError:
    """Translate saved names by the first key map that has every name.

    Args:
        tensors: the saved tensors.
        framework: the framework that wrote them, a key of `FRAMEWORKS`.
        model_type: `model_type` of the config; its key map is tried first. None where not known.
        folder: the checkpoint's folder, for errors.
        architecture: the family by the file's own metadata (GGUF); else None.

    Returns:
        The translation, or the error where no key map has every name.
    """
    known = [m for m in key_maps() if m.framework == framework]
    found = [m for m in known if m.architecture == architecture]
    found.sort(key=lambda key_map: model_type not in key_map.model_types)
    unknown = {} if found else {0: f"the architecture {architecture}"}
    for key_map in found:
        parts: dict[str, dict[int, Source]] = {}
        unmapped, zero = [], []
        for one in tensors:
            for target in key_map.names.get(one.pattern, ()):
                source = Source(one.source.saved, one.source.layer, target.part)
                parts.setdefault(target.name.format(*one.numbers), {})[target.place] = source
            if one.pattern in key_map.zero:
                zero.append(one.source.saved)
            elif one.pattern not in key_map.names and not one.name.startswith(key_map.ignored):
                unmapped.append(one.name)
        if not unmapped:
            sources = {
                name: tuple(source for _, source in sorted(joined.items()))
                for name, joined in sorted(parts.items())
            }
            return Translation(sources, key_map, tuple(dict.fromkeys(zero)))
        unknown.setdefault(len(unmapped), unmapped[0])
    words = FRAMEWORKS[framework]
    mapped = ", ".join(sorted({t for key_map in known for t in key_map.model_types}))
    return UnsupportedLayoutError(
        f"{folder.name} holds a model of {words.name}, and moegeo has no key map for its names",
        found=f"for instance {unknown[min(unknown)]}; key maps exist for {mapped}",
        hint=words.hint.replace("{path}", str(folder)),
    )


def other_type_error(key_map: KeyMap, model_type: str, folder: Path) -> MoegeoError | None:
    """The error for a config whose model type is not that of the names; None where it is."""
    if model_type in key_map.model_types:
        return None
    types = " or ".join(key_map.model_types)
    return UnsupportedLayoutError(
        f"config.json is for model type {model_type}, and {folder.name} holds a model of {types}",
        found=f"tensor names of {FRAMEWORKS[key_map.framework].name} for {types}",
        hint="give the config.json of the model in the files with --config",
    )


@functools.cache
def key_maps() -> tuple[KeyMap, ...]:
    """The key maps of every family and framework, from families/*.toml."""
    return tuple(
        KeyMap(
            framework=framework,
            model_types=tuple(facts[framework]["model_types"]),
            ignored=tuple(facts[framework].get("ignored", ())),
            zero=tuple(facts[framework].get("zero", ())),
            names=_by_pattern(facts[framework]["names"]),
            architecture=facts[framework].get("architecture"),
        )
        for facts in read_families()
        for framework in FRAMEWORKS
        if framework in facts
    )


def _by_pattern(names: Mapping[str, list[str]]) -> dict[str, tuple[Target, ...]]:
    """Pattern of the framework's name -> what it fills in the model."""
    found: dict[str, tuple[Target, ...]] = {}
    for pattern, target in _targets(names):
        found[pattern] = (*found.get(pattern, ()), target)
    return found


def _targets(names: Mapping[str, list[str]]) -> Iterator[tuple[str, Target]]:
    for name, alternatives in names.items():
        for alternative in alternatives:
            for place, one in enumerate(alternative.split(" + ")):
                pattern, _, part = one.partition(" @ ")
                yield pattern, Target(name, place, part or None)
