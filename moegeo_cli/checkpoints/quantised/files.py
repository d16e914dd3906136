"""`Files`: what a function in `forms/` gets to recognise a quantised tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.quantised.recipe import Recipe

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
SCALES = FLOATS | {"U8", "F8_E8M0"}
# What a form returns: name of the dequantised tensor, its recipe, names of tensors to leave out
# (they only say how activations were quantised). None if the form does not recognise the tensor.
FormResult = tuple[str, Recipe, tuple[str, ...]] | None


@dataclass(frozen=True, slots=True)
class Files:
    """A checkpoint's tensors, as forms see them.

    Attributes:
        tensors: name -> dtype and shape.
        settings: the checkpoint's quantisation settings.
        read: reads the values of a (small) tensor.
    """

    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    read: Callable[[str], Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Dtype of a tensor."""
        return self.tensors[name].dtype


def has_tensor(files: Files, name: str, dtypes: frozenset[str] | set[str]) -> bool:
    """Whether a tensor exists and has one of these dtypes."""
    return name in files.tensors and files.dtype(name) in dtypes


def find_setting(settings: Mapping[str, Any], key: str) -> Any:
    """The integer under a key anywhere in nested settings; None for none or differing ones."""
    found = {v for v in setting_values(settings, key) if type(v) is int}
    return found.pop() if len(found) == 1 else None


def setting_values(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key anywhere in nested settings."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key:
                yield value
            yield from setting_values(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from setting_values(value, key)
