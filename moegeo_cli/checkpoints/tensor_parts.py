"""Take the rows of a saved tensor that are one tensor of transformers' model, in its row order.

Other frameworks keep query, key and value in one matrix, or order rows differently. Key maps name a
part of `PARTS` for such tensors. A part selects and reorders rows; values do not change.

Legend: N rows of a tensor, Q query heads, G groups of heads that share key and value, D size of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes from a config; None where it does not say them.

    Attributes:
        queries: Q, number of query heads.
        groups: G, number of key and value heads.
        head: D, size of a head.
        vocabulary: number of token ids.
    """

    queries: int | None = None
    groups: int | None = None
    head: int | None = None
    vocabulary: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """The sizes in a parsed config.json."""

        def number(key: str) -> int | None:
            value = config.get(key)
            return value if type(value) is int and value > 0 else None

        queries, hidden = number("num_attention_heads"), number("hidden_size")
        head = number("head_dim") or (hidden // queries if hidden and queries else None)
        groups = number("num_key_value_heads") or queries
        return cls(queries, groups, head, number("vocab_size"))


@dataclass(frozen=True, slots=True)
class Part:
    """How to take a part of a tensor.

    Both functions raise ValueError if the sizes do not fit the tensor, and TypeError if a size is
    not known.

    Attributes:
        rows: (N, sizes) -> number of rows of the part.
        take: (tensor, sizes) -> the part.
    """

    rows: Callable[[int, Sizes], int]
    take: Callable[[Any, Sizes], Any]


def part_shape(part: str | None, shape: Shape, sizes: Sizes) -> Shape:
    """The shape of a part.

    Args:
        part: a key of PARTS; "row" for the whole tensor as one row; None for the whole tensor.
        shape: the tensor's shape.
        sizes: the config's sizes.

    Raises:
        ValueError: the config's sizes do not fit the tensor, or are missing.
    """
    if part is None:
        return shape
    if part == "row":
        return (1, math.prod(shape))
    if not shape:
        raise ValueError("a number has no rows")
    try:
        return (PARTS[part].rows(shape[0], sizes), *shape[1:])
    except TypeError:
        raise ValueError("config.json does not say how many heads there are") from None


def take_part(part: str | None, tensor: Any, sizes: Sizes) -> Any:
    """Take a part of a tensor; arguments as for `part_shape`.

    Raises:
        ValueError: the config's sizes do not fit the tensor, or are missing.
    """
    if part is None:
        return tensor
    _ = part_shape(part, tuple(tensor.shape), sizes)
    return tensor.reshape(1, -1) if part == "row" else PARTS[part].take(tensor, sizes)


def _head_groups(rows: int, sizes: Sizes) -> tuple[int, int, int]:
    """(G, query heads a group, D) of a joint query-key-value matrix with `rows` rows."""
    queries, groups, head = sizes.queries, sizes.groups, sizes.head
    if queries is None or groups is None or head is None:
        raise TypeError
    if queries % groups or rows != (queries + 2 * groups) * head:
        raise ValueError(f"{rows} rows for {queries} + 2 · {groups} heads of {head}")
    return groups, queries // groups, head


def _query_rows(rows: int, sizes: Sizes) -> int:
    groups, share, head = _head_groups(rows, sizes)
    return groups * share * head


def _key_rows(rows: int, sizes: Sizes) -> int:
    groups, _, head = _head_groups(rows, sizes)
    return groups * head


def _take_heads(which: slice) -> Callable[[Any, Sizes], Any]:
    """Take some heads of each group, which holds query heads, then its key, then its value."""

    def take(tensor: Any, sizes: Sizes) -> Any:
        groups, share, head = _head_groups(len(tensor), sizes)
        split = tensor.reshape(groups, share + 2, head, *tensor.shape[1:])
        return split[:, which].reshape(-1, *tensor.shape[1:])

    return take


def _half(rows: int, sizes: Sizes) -> int:
    if rows % 2:
        raise ValueError(f"{rows} rows have no halves")
    return rows // 2


def _known_ids(rows: int, sizes: Sizes) -> int:
    return rows if sizes.vocabulary is None else min(rows, sizes.vocabulary)


def _paired(heads: str) -> Part:
    """Reorder the rows of each head from pairs (0, D/2), (1, D/2 + 1), … to two halves."""

    def rows(count: int, sizes: Sizes) -> int:
        number = getattr(sizes, heads)
        if count % (2 * number):
            raise ValueError(f"{count} rows for {number} heads")
        return count

    def take(tensor: Any, sizes: Sizes) -> Any:
        split = tensor.reshape(getattr(sizes, heads), -1, 2, *tensor.shape[1:])
        return split.transpose(1, 2).reshape(tensor.shape)

    return Part(rows, take)


PARTS: Mapping[str, Part] = {
    # Megatron-core's linear_qkv
    "query": Part(_query_rows, _take_heads(slice(None, -2))),
    "key": Part(_key_rows, _take_heads(slice(-2, -1))),
    "value": Part(_key_rows, _take_heads(slice(-1, None))),
    # linear_fc1 of a gated layer: rows of gate, then rows of up
    "first half": Part(_half, lambda tensor, sizes: tensor[: len(tensor) // 2]),
    "second half": Part(_half, lambda tensor, sizes: tensor[len(tensor) // 2 :]),
    # Megatron pads the vocabulary: take the rows of real token ids
    "ids": Part(_known_ids, lambda tensor, sizes: tensor[: _known_ids(len(tensor), sizes)]),
    # rotary embedding: llama.cpp rotates neighbouring rows, transformers the two halves
    "paired query": _paired("queries"),
    "paired key": _paired("groups"),
}
