"""Recognise weights of 4-bit floats, two a byte: NVFP4 and MXFP4."""

from __future__ import annotations

import math

from moegeo_cli.checkpoints.quantised.files import Files, FormResult, has_tensor
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError


def read_fp4(files: Files, name: str) -> FormResult:
    """NVFP4 and MXFP4 as compressed-tensors and ModelOpt store them."""
    if files.dtype(name) != "U8":
        return None
    if name.endswith(".weight_packed"):
        target = name.removesuffix("_packed")
        scale, divisor = f"{target}_scale", f"{target}_global_scale"
        left_out = (f"{target.removesuffix('weight')}input_global_scale",)
        roles = {"divisor": divisor} if divisor in files.tensors else {}
    elif f"{name}_scale" in files.tensors and f"{name}.absmax" not in files.tensors:
        target, scale = name, f"{name}_scale"
        left_out = (f"{name.removesuffix('weight')}input_scale",)
        roles = {"factor": f"{name}_scale_2"} if f"{name}_scale_2" in files.tensors else {}
    else:
        return None
    if scale not in files.tensors:
        raise UnreadableFormError("4-bit floats without scales")
    rows, width = files.shape(name)[:-1], files.shape(name)[-1] * 2
    held = files.shape(scale)
    known = files.dtype(scale) in {"F8_E4M3", "F8_E8M0", "U8"}
    if not known or held[:-1] != rows or not held[-1] or width % held[-1]:
        raise UnreadableFormError(
            f"bytes of shape {list(files.shape(name))} with scales {list(held)}: no 4-bit floats"
        )
    if files.dtype(scale) == "F8_E4M3" and not roles:
        raise UnreadableFormError("NVFP4 without its scale of the whole tensor")
    kind = "NVFP4" if files.dtype(scale) == "F8_E4M3" else "MXFP4"
    parts = {"weight": name, "scale": scale, **roles}
    if any(math.prod(files.shape(n)) != 1 for n in roles.values()):
        raise UnreadableFormError(f"{kind} with several scales of the whole tensor")
    return target, Recipe("fp4", kind, parts, (*rows, width)), left_out


def read_mxfp4_blocks(files: Files, name: str) -> FormResult:
    """MXFP4 as gpt-oss stores it: `…_blocks` and `…_scales`."""
    if not name.endswith("_blocks") or files.dtype(name) != "U8":
        return None
    target = name.removesuffix("_blocks")
    scale, shape = f"{target}_scales", files.shape(name)
    if not has_tensor(files, scale, {"U8"}) or files.shape(scale) != shape[:-1] or len(shape) != 4:
        raise UnreadableFormError("MXFP4 blocks without the scales that belong to them")
    experts, rows, groups, half = shape
    recipe = Recipe("mxfp4-blocks", "MXFP4", {"weight": name, "scale": scale},
                    (experts, groups * half * 2, rows), by_row=True)  # fmt: skip
    return target, recipe, ()
