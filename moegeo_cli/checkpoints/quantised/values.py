"""Dequantise tensors: (q − zero) · scale in float32, for each way in which files store q.

`EffectiveWeights` calls `dequantise` with a `Recipe` that `plan` found.

Legend: R rows, C columns of a weight, E experts, G groups of columns that share a scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

Parts = Mapping[str, torch.Tensor]
Settings = Mapping[str, Any]

# The 16 values of E2M1: one sign bit, two exponent bits, one mantissa bit.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # AWQ: position in a word of each of eight neighbours


def dequantise(form: str, parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """Compute the values of one tensor, in float32.

    Args:
        form: a key of `FORMULAS`.
        parts: role -> stored tensor.
        settings: the recipe's settings.
        shape: shape of the result.

    Raises:
        ValueError: the shapes of the parts do not fit each other.
    """
    values = FORMULAS[form](parts, settings, shape)
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"shape {tuple(values.shape)} where {tuple(shape)} was expected")
    return values


def read_scale(scale: torch.Tensor) -> torch.Tensor:
    """A scale in float32; bytes are exponents of 2 with bias 127 (E8M0)."""
    if scale.dtype == torch.uint8 or scale.dtype == torch.float8_e8m0fnu:
        return torch.exp2(scale.view(torch.uint8).float() - 127)
    return scale.float()


def expand(scale: torch.Tensor, shape: tuple[int, ...], blocks: tuple[int, ...]) -> torch.Tensor:
    """Repeat the scale of each block over its elements; the last block may be shorter."""
    for axis, (size, block) in enumerate(zip(shape, blocks, strict=True)):
        if scale.shape[axis] not in (1, size):
            scale = scale.repeat_interleave(block, dim=axis).narrow(axis, 0, size)
    return scale


def unpack_bits(words: torch.Tensor, bits: int, count: int, axis: int) -> torch.Tensor:
    """Unsigned integers of `bits` bits from a stream of int32 words, lowest bits first."""
    words = words.transpose(axis, -1).long() & 0xFFFFFFFF
    starts = torch.arange(count) * bits
    word, offset = starts // 32, starts % 32
    following = torch.nn.functional.pad(words, (0, 1))[..., word + 1]
    joined = (words[..., word] >> offset) | (following << (32 - offset))
    return (joined & ((1 << bits) - 1)).transpose(axis, -1).to(torch.int32)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Split each byte into two 4-bit values along the last dimension, the lower half first."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def _scaled(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """(q − zero) · scale: 8-bit floats or integers; one scale a block, a row or the tensor."""
    scale = read_scale(parts["scale"]).reshape(settings["scale_shape"])
    blocks = tuple(settings["blocks"])
    values = parts["weight"].float()
    if "zero" in parts:
        zero = parts["zero"].float().reshape(scale.shape)
        values = values - expand(zero, shape, blocks)
    values = values * expand(scale, shape, blocks)
    return values * float(settings.get("factor", 1.0))


def _fp4(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """Two E2M1 values a byte; a scale for each group of columns, optionally one for the tensor."""
    values = torch.tensor(FP4)[unpack_nibbles(parts["weight"]).long()]
    scale = read_scale(parts["scale"])
    if "divisor" in parts:
        scale = scale / parts["divisor"].float().reshape(-1)[0]
    if "factor" in parts:
        scale = scale * parts["factor"].float().reshape(-1)[0]
    return values * scale.repeat_interleave(values.shape[-1] // scale.shape[-1], dim=-1)


def _mxfp4_blocks(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """gpt-oss: blocks (E, R, G, 16) of bytes and scales (E, R, G), for a weight (E, C, R)."""
    values = torch.tensor(FP4)[unpack_nibbles(parts["weight"]).long()]
    values = values * read_scale(parts["scale"]).unsqueeze(-1)
    return values.flatten(-2).transpose(-1, -2).contiguous()


def _packed_groups(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """compressed-tensors: integers packed along the columns in int32 words; a scale a group."""
    bits, (rows, columns) = int(settings["bits"]), shape[-2:]
    half = 1 << (bits - 1)
    scale = parts["scale"].float()
    quantised = unpack_bits(parts["weight"], bits, columns, -1).float() - half
    zero = torch.zeros_like(scale)
    if "zero" in parts:
        zero = unpack_bits(parts["zero"], bits, rows, -2).float() - half
    group = _group_of(parts, columns, scale.shape[-1])
    return (quantised - zero[..., group]) * scale[..., group]


def _gptq(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """GPTQ: a transposed weight, integers packed along the inputs; add `offset` to zeros."""
    bits, (rows, columns) = int(settings["bits"]), shape
    scale = parts["scale"].float()  # (G, R)
    zero = unpack_bits(parts["zero"], bits, rows, -1).float() + settings["offset"]
    quantised = unpack_bits(parts["weight"], bits, columns, -2).float()  # (C, R)
    group = _group_of(parts, columns, scale.shape[0])
    values: torch.Tensor = (quantised - zero[group]) * scale[group]
    return values.T.contiguous()


def _awq(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """AWQ: a transposed weight, 4-bit values packed along the outputs in the order AWQ_ORDER."""
    rows, columns = shape
    scale = parts["scale"].float()  # (G, R)
    order = torch.tensor(AWQ_ORDER)

    def unpack(words: torch.Tensor) -> torch.Tensor:
        found = unpack_bits(words, 4, rows, -1)
        return found.reshape(found.shape[0], -1, 8)[..., order].flatten(1).float()

    group = torch.arange(columns) // (columns // scale.shape[0])
    return ((unpack(parts["weight"]) - unpack(parts["zero"])[group]) * scale[group]).T.contiguous()


def _bitsandbytes4(parts: Parts, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
    """bitsandbytes: 4-bit indices into a table, the upper half first; a scale a block."""
    state = parse_state(parts["state"])
    absmax = parts["absmax"].float()
    if "nested_map" in parts:
        table, outer = parts["nested_map"].float(), parts["nested_absmax"].float()
        size = int(state["nested_blocksize"])
        outer = outer.repeat_interleave(size)[: absmax.numel()]
        absmax = table[parts["absmax"].long()] * outer + float(state["nested_offset"])
    packed = parts["weight"].reshape(-1).view(torch.uint8)
    codes: torch.Tensor = torch.stack((packed >> 4, packed & 0xF), dim=-1).reshape(-1)[
        : math.prod(shape)
    ]
    scale = absmax.repeat_interleave(int(state["blocksize"]))[: codes.numel()]
    values: torch.Tensor = parts["map"].float()[codes.long()] * scale
    return values.reshape(shape)


def parse_state(raw: Any) -> dict[str, Any]:
    """Parse the JSON that bitsandbytes stores as bytes beside a weight.

    Raises:
        ValueError: the bytes are no JSON object.
    """
    state = json.loads(bytes(raw.tolist()))
    if not isinstance(state, dict):
        raise ValueError("no table of settings")
    return state


def _group_of(parts: Parts, columns: int, groups: int) -> torch.Tensor:
    """The group of each column: stored (columns were sorted), else groups of equal size."""
    if "group" in parts:
        return parts["group"].long()
    return torch.arange(columns) // -(-columns // groups)


FORMULAS: Mapping[str, Callable[[Parts, Settings, tuple[int, ...]], torch.Tensor]] = {
    "scaled": _scaled,
    "fp4": _fp4,
    "mxfp4-blocks": _mxfp4_blocks,
    "packed-groups": _packed_groups,
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes-4bit": _bitsandbytes4,
}
