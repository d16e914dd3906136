"""Find an unused tensor that may be a missing one under another name, for error messages.

A converter may rename a router. The checkpoint then lacks the router, and holds an unused tensor
of the same shape. The error names both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile

LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|block|h)\.(\d+)(?=\.)")
_ROUTER_WORD = re.compile(r"(?:^|[._])(?:gate|gating|router|routing|wg|switch)(?:[._]|$)")
_NO_ROUTER = re.compile(r"(?:^|\.)(?:experts|shared_experts?|\w*_proj)\.")


@functools.lru_cache(2**16)  # several readers ask for every tensor's
def layer_path(name: str) -> str:
    """A name up to its last layer number, such as `model.layers.3`; "" outside of layers."""
    end = max((match.end(1) for match in LAYER.finditer(f"{name}.")), default=0)
    return name[:end]


def shared_parts(name: str, other: str) -> int:
    """How many leading parts two dotted names share."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def find_same_shape(
    wanted: str, shape: tuple[int | None, ...], held: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Find a tensor of the same layer that has the shape of a missing one.

    Args:
        wanted: name of the missing tensor.
        shape: its shape; None for a length that is not known.
        held: name -> shape of the candidates.

    Returns:
        The name of the most likely candidate: one named like a router first, then the one that
        shares most of the name. None where no candidate is named like a router or shares more
        than the layer's path.
    """
    layer = layer_path(wanted)
    found = []
    for name, size in held.items():
        if layer_path(name) != layer or name == wanted or not _fits(size, shape):
            continue
        near = shared_parts(name, wanted) > shared_parts(layer, wanted)
        word = bool(_ROUTER_WORD.search(name[len(layer) :])) and not _NO_ROUTER.search(name)
        if word or near:
            found.append((not word, -shared_parts(name, wanted), name))
    return min(found)[2] if found else None


def describe_same_shapes(
    pairs: Iterable[tuple[str, str]], held: Mapping[str, tuple[int, ...]]
) -> str:
    """Say in words which tensors have the shapes of missing ones.

    Args:
        pairs: (name of a missing tensor, name of a tensor with its shape).
        held: name -> shape.
    """
    pairs = list(pairs)
    shown = [
        f"{name} {list(held[name])} has the shape of the missing {wanted}"
        for wanted, name in pairs[:2]
    ]
    more = f", and {len(pairs) - 2} more like these" if len(pairs) > 2 else ""
    return "; ".join(shown) + more


def _fits(size: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(size) == len(shape) and all(
        b is None or a == b for a, b in zip(size, shape, strict=True)
    )
