"""Key maps: the names that other frameworks give a model's tensors, as those of transformers.

The maps are data, a table of each family in families/*.toml: [torchtitan], [megatron], [gguf]. A
checkpoint is of a family if the family's map has every name in it.
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
    """A saved tensor, or a part of it, that a tensor of the model is made of.

    Attributes:
        saved: its name.
        layer: which one along the first axis, where layers were saved as one tensor.
        part: which rows: see `tensor_parts`.
    """

    saved: str
    layer: int | None = None
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved tensor by the pattern of its name: numbers as `{}`, and the numbers themselves."""

    name: str
    pattern: str
    numbers: tuple[str, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the model that a saved one is, or is a part of; `place` where several join."""

    name: str
    place: int
    part: str | None


@dataclass(frozen=True, slots=True)
class Family:
    """One framework's names of a family: see `families`."""

    framework: str
    model_types: tuple[str, ...]
    ignored: tuple[str, ...]
    zero: tuple[str, ...]
    names: Mapping[str, tuple[Target, ...]]
    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A model's tensors: its name -> what is joined for it along the second dimension.

    `zero` are saved names that have no place in the model, and change nothing while they are 0.
    """

    sources: Mapping[str, tuple[Source, ...]]
    family: Family
    zero: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Framework:
    """How a framework is spoken of, and what to run where its names have no map."""

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
    """A name with its numbers as `{}`, and these numbers."""
    return _NUMBER.sub("{}", name), tuple(_NUMBER.findall(name))


def plain(names: Mapping[str, str]) -> list[Saved]:
    """Saved tensors (name -> saved name), each as one of the model's."""
    return [Saved(name, *split_name(name), Source(saved)) for name, saved in names.items()]


def translate(
    tensors: Sequence[Saved],
    framework: str,
    model_type: str | None,
    folder: Path,
    *,
    architecture: str | None = None,
) -> Translation | MoegeoError:
    """The tensors of transformers' model, by the map of the family that has every name.

    Args:
        tensors: what was saved.
        framework: whose names these are.
        model_type: of the config, where it is known: its family is asked first.
        folder: for errors.
        architecture: what the file itself says of the family, where it does.

    Returns:
        The translation, or the error where no map has every name.
    """
    known = [f for f in families() if f.framework == framework]
    found = [f for f in known if f.architecture == architecture]
    found.sort(key=lambda family: model_type not in family.model_types)
    unknown = {} if found else {0: f"the architecture {architecture}"}
    for family in found:
        parts: dict[str, dict[int, Source]] = {}
        strangers, zero = [], []
        for one in tensors:
            for target in family.names.get(one.pattern, ()):
                source = Source(one.source.saved, one.source.layer, target.part)
                parts.setdefault(target.name.format(*one.numbers), {})[target.place] = source
            if one.pattern in family.zero:
                zero.append(one.source.saved)
            elif one.pattern not in family.names and not one.name.startswith(family.ignored):
                strangers.append(one.name)
        if not strangers:
            sources = {
                name: tuple(source for _, source in sorted(joined.items()))
                for name, joined in sorted(parts.items())
            }
            return Translation(sources, family, tuple(dict.fromkeys(zero)))
        unknown.setdefault(len(strangers), strangers[0])
    words = FRAMEWORKS[framework]
    mapped = ", ".join(sorted({t for family in known for t in family.model_types}))
    return UnsupportedLayoutError(
        f"{folder.name} holds a model of {words.name}'s of whose names moegeo has no map",
        found=f"for instance {unknown[min(unknown)]}; mapped are {mapped}",
        hint=words.hint.replace("{path}", str(folder)),
    )


def refuse_other_type(family: Family, model_type: str, folder: Path) -> MoegeoError | None:
    """The error for a config of another model than the names are of; None where it is theirs."""
    if model_type in family.model_types:
        return None
    types = " or ".join(family.model_types)
    return UnsupportedLayoutError(
        f"the config is of a {model_type}, and {folder.name} of a {types}",
        found=f"{FRAMEWORKS[family.framework].name}'s names of that model",
        hint="give that model's config.json with --config",
    )


@functools.cache
def families() -> tuple[Family, ...]:
    """The key maps of every family and framework."""
    return tuple(
        Family(
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
    """Their pattern -> the tensors that it is, or is a part of."""
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
