"""Recognise torchao's int8 and float8 tensors, as it writes them to safetensors."""

from __future__ import annotations

import re

from moegeo_cli.checkpoints.quantised.blocks import find_blocks
from moegeo_cli.checkpoints.quantised.files import EIGHT_BIT_FLOATS, Files, FormResult
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError


def read_torchao(files: Files, name: str) -> FormResult:
    """Weights in `_weight_qdata` with `_weight_scale`, in the place of `weight`."""
    stem, _, last = name.rpartition(".")
    match = re.fullmatch(r"_(\w+)_qdata", last)
    if match is None:
        return None
    prefix = f"{stem}." if stem else ""
    target, own = f"{prefix}{match[1]}", f"{prefix}_{match[1]}_"
    scale, dtype = f"{own}scale", files.dtype(name)
    if dtype not in EIGHT_BIT_FLOATS | {"I8"} or scale not in files.tensors:
        raise UnreadableFormError(f"torchao weights of dtype {dtype}; int8 and float8 are read")
    extra = {n for n in files.tensors if n.startswith(own)} - {name, scale}
    parts = {"weight": name, "scale": scale}
    if f"{own}zero_point" in extra:
        extra.discard(f"{own}zero_point")
        parts["zero"] = f"{own}zero_point"
    if extra:
        raise UnreadableFormError(f"torchao weights with {sorted(extra)[0]}")
    blocks, scale_shape = find_blocks(files, name, scale, exact=True)
    settings = {"blocks": blocks, "scale_shape": scale_shape}
    scheme = "torchao int8" if dtype == "I8" else "torchao float8"
    return target, Recipe("scaled", scheme, parts, files.shape(name), settings), ()
