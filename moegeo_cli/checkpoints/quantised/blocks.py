"""Find which elements of a quantised tensor share a scale, from the shapes of both."""

from __future__ import annotations

import math

from moegeo_cli.checkpoints.quantised.files import Files, setting_values
from moegeo_cli.checkpoints.quantised.recipe import UnreadableFormError

DEFAULT_BLOCK = 128


def describe_scales(shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> str:
    """How many elements share a scale, as words that follow a scheme's name."""
    if math.prod(scale_shape) == 1:
        return ", one scale a tensor"
    if scale_shape[-1] == 1 and scale_shape[-2:-1] in ((), shape[-2:-1]):
        return ", one scale a row"
    return ", scales by block"


def find_blocks(
    files: Files, name: str, scale: str, *, exact: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the block of elements that shares a scale.

    Args:
        files: the tensors and settings.
        name: the quantised tensor.
        scale: its tensor of scales.
        exact: do not try blocks of DEFAULT_BLOCK where no setting gives a size.

    Returns:
        (size of a block, shape of the scales), each with one number for every dimension of the
        quantised tensor.

    Raises:
        UnreadableFormError: the shapes do not fit each other.
    """
    shape, held = files.shape(name), files.shape(scale)
    scale_shape: tuple[int, ...]
    if math.prod(held) == 1:
        scale_shape = (1,) * len(shape)
    elif len(held) == 1 and len(shape) == 2:
        scale_shape = (held[0], 1)
    elif len(held) == 1 and len(shape) == 3:
        scale_shape = (held[0], 1, 1)
    elif len(held) == 2 and len(shape) == 3:
        if held == shape[:2]:
            scale_shape = (*held, 1)
        elif held[0] == shape[0] and held[1] == shape[2]:
            scale_shape = (held[0], 1, held[1])
        else:
            raise UnreadableFormError(f"a scale of shape {list(held)} for {list(shape)}")
    else:
        scale_shape = held
    if len(scale_shape) != len(shape):
        raise UnreadableFormError(f"a scale of shape {list(held)} for {list(shape)}")
    stated = files.settings.get("weight_block_size") or next(
        setting_values(files.settings, "block_structure"), None
    )
    blocks = []
    for axis, (size, count) in enumerate(zip(shape, scale_shape, strict=True)):
        from_end = len(shape) - axis
        known = stated[-from_end] if isinstance(stated, list) and from_end <= len(stated) else None
        blocks.append(_block(size, count, known if type(known) is int else None, exact=exact))
    return tuple(blocks), scale_shape


def _block(size: int, count: int, stated: int | None, *, exact: bool) -> int:
    """How many of a dimension's `size` elements share one of its `count` scales."""
    if count == size:
        return 1
    if count == 1:
        return size
    tried = [stated, *([] if exact else [DEFAULT_BLOCK])]
    for block in tried:
        if block and -(-size // block) == count:
            return block
    if count and size % count == 0:
        return size // count
    raise UnreadableFormError(f"{count} scales for {size} elements, and no block size that fits")
