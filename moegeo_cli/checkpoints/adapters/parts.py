"""Sort an adapter's tensors by name: pairs of low-rank matrices, and tensors that replace others.

peft names them after the trained model's modules, with `lora_A`, `lora_B` and so on below the
module. Where several parameters of a module are targets, peft nests a wrapper for each, and the
name shows the depth (`.base_layer`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

_MATRIX = re.compile(
    r"^(?P<module>.+?)(?P<depth>(?:\.base_layer)*)\."
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?$"
)
_SAVED = re.compile(r"^(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.+)$")
_ORIGINAL = re.compile(r"^(?P<module>.+)\.original_module\.(?P<rest>.+)$")
_BASE = re.compile(r"\.base_layer(?=\.)")
_OTHER = re.compile(r"(?:^|\.)(?:lora_\w+|token_adapter|trainable_tokens_\w+|ia3_\w+|hada_\w+|"
                    r"lokr_\w+|vera_\w+|oft_\w+)(?=\.|$)")  # fmt: skip


@dataclass(slots=True)
class Target:
    """The low-rank matrices of one module or parameter.

    Attributes:
        module: the module's path in the model.
        depth: number of wrappers, for other parameters of the same module, around this one.
        parts: "A", "B" and "magnitude" -> name of the tensor.
        embedding: whether the module is an embedding; peft stores its matrices transposed.
    """

    module: str
    depth: int
    parts: dict[str, str] = field(default_factory=dict)
    embedding: bool = False


@dataclass(slots=True)
class Parts:
    """The tensors of an adapter, or of a model with an adapter, sorted.

    Attributes:
        targets: the low-rank matrices.
        replaced: parameter -> the tensor that replaces it.
        base: parameter of the base model -> its tensor.
    """

    targets: tuple[Target, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)


def is_unmerged(names: Iterable[str]) -> bool:
    """Whether a model's weights hold an adapter's matrices."""
    return any("lora_" in name and _MATRIX.match(name) for name in names)


def sort_parts(names: Iterable[str], folder: Path, *, alone: bool) -> Parts:
    """Sort an adapter's tensors.

    Args:
        names: names without wrappers.
        folder: the checkpoint's folder, for errors.
        alone: true for an adapter's own file, in which every other tensor replaces a parameter.
            False for a model's weights that hold an adapter, in which the others are the base
            model's.

    Raises:
        UnsupportedLayoutError: several adapters, or a kind that moegeo does not merge.
        IncompleteCheckpointError: one matrix of a pair is missing.
    """
    targets: dict[tuple[str, int], Target] = {}
    found, adapters = Parts(), set()
    originals: dict[str, str] = {}
    for name in names:
        if match := _MATRIX.match(name):
            if match["leaf"] == "bias":
                raise _unsupported_error(folder, name)
            adapters.add(match["adapter"])
            part = match["part"]
            key = match["module"], match["depth"].count(".base_layer")
            target = targets.setdefault(key, Target(*key))
            target.embedding |= "embedding" in part
            target.parts["magnitude" if "magnitude" in part else part[-1]] = name
        elif match := _SAVED.match(name):
            adapters.add(match["adapter"])
            found.replaced[f"{match['module']}.{match['rest']}"] = name
        elif match := _ORIGINAL.match(name):
            originals[f"{match['module']}.{match['rest']}"] = name
        elif _OTHER.search(name):
            raise _unsupported_error(folder, name)
        elif alone:
            found.replaced[_BASE.sub("", name)] = name
        else:
            found.base[_BASE.sub("", name)] = name
    found.base |= originals
    if len(adapters) > 1:
        raise UnsupportedLayoutError(
            f"{folder.name} holds several adapters, and does not say which of them are active",
            found=", ".join(sorted(str(name) for name in adapters)),
            hint="save the model with one adapter, or merge them with peft (merge_and_unload)",
        )
    found.targets = tuple(targets.values())
    _check_pairs(found.targets, folder)
    return found


def _check_pairs(targets: Iterable[Target], folder: Path) -> None:
    for target in targets:
        missing = {"A", "B"} - set(target.parts)
        if missing:
            held = next(iter(target.parts.values()))
            raise IncompleteCheckpointError(
                f"{folder.name}: the adapter lacks lora_{min(missing)} of {target.module}",
                found=held,
                hint="copy or save the adapter again",
                context={"module": target.module},
            )


def _unsupported_error(folder: Path, name: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"{folder.name} holds parts of an adapter of a kind that moegeo does not merge",
        found=name,
        hint="merge it where it was trained (peft: merge_and_unload) and save the result",
        context={"tensor": name},
    )
