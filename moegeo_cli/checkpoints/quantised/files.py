"""What quantised forms are told by: tensors by name, settings, and the values of small tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.quantised.recipe import Recipe

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
SCALES = FLOATS | {"U8", "F8_E8M0"}
Made = tuple[str, Recipe, tuple[str, ...]] | None


@dataclass(frozen=True, slots=True)
class Files:
    """What forms are told by: tensors by name, the settings, the values of small tensors."""

    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    read: Callable[[str], Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Dtype of a tensor."""
        return self.tensors[name].dtype


def holds(files: Files, name: str, dtypes: frozenset[str] | set[str]) -> bool:
    """Whether a tensor is there, of one of these dtypes."""
    return name in files.tensors and files.dtype(name) in dtypes


def search(settings: Mapping[str, Any], key: str) -> Any:
    """The only value of a key anywhere in nested settings; None where several differ."""
    found = {v for v in values_of(settings, key) if type(v) is int}
    return found.pop() if len(found) == 1 else None


def values_of(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key anywhere in nested settings."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from values_of(value, key)
