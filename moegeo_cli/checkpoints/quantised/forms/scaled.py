"""Recognise 8-bit floats and integers with a tensor of scales: FP8, int8, bitsandbytes int8."""

from __future__ import annotations

from typing import Any

from moegeo_cli.checkpoints.quantised.blocks import describe_scales, find_blocks
from moegeo_cli.checkpoints.quantised.files import (
    EIGHT_BIT_FLOATS,
    SCALES,
    Files,
    FormResult,
    has_tensor,
)
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError


def read_scaled(files: Files, name: str) -> FormResult:
    """8-bit weights with a tensor of scales under one of its usual names."""
    dtype = files.dtype(name)
    if dtype not in EIGHT_BIT_FLOATS and dtype != "I8":
        return None
    stem = name.removesuffix("weight")
    names = [f"{name}_scale_inv", f"{name}_scale"]
    if stem != name:
        names += [f"{stem}scale", f"{stem}qscale_weight", f"{stem}scale_inv", f"{stem}SCB"]
    scale = next((n for n in names if has_tensor(files, n, SCALES)), None)
    if scale is None:
        return None  # `accounting.check_dtypes` refuses it if a parameter takes it
    shape, factor, scheme = files.shape(name), 1.0, "FP8" if dtype != "I8" else "int8"
    parts, left_out = {"weight": name, "scale": scale}, []
    if scale.endswith("SCB"):
        scheme, factor = "bitsandbytes int8", 1 / 127
        left_out.append(f"{stem}weight_format")
        _check_format(files, f"{stem}weight_format")
    zero = f"{name}_zero_point"
    if zero in files.tensors:
        parts["zero"] = zero
    blocks, scale_shape = find_blocks(files, name, scale, exact=dtype == "I8")
    by_row = len(shape) == 3 and len(files.shape(scale)) > 1 and scale_shape[0] == shape[0] > 1
    settings: dict[str, Any] = {
        "blocks": blocks,
        "factor": factor,
        "scale_shape": (-1, *scale_shape[1:]) if by_row else scale_shape,
    }
    kind = describe_scales(shape, scale_shape)
    return name, Recipe("scaled", f"{scheme}{kind}", parts, shape, settings, by_row), (*left_out,)


def _check_format(files: Files, name: str) -> None:
    """Refuse any weight format but 0 (row order); others are for GPUs no longer in use."""
    if name in files.tensors and int(files.read(name).reshape(-1)[0]) != 0:
        raise UnreadableFormError("bitsandbytes int8 in the column order of a GPU")
