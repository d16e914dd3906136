"""Recognise optimum-quanto weights of 8 bits."""

from __future__ import annotations

import re

from moegeo_cli.checkpoints.quantised.blocks import find_blocks
from moegeo_cli.checkpoints.quantised.files import EIGHT_BIT_FLOATS, Files, FormResult
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError

QUANTO = re.compile(r"\._data(?:\._data)?$")


def read_quanto(files: Files, name: str) -> FormResult:
    """Weights in `weight._data` with `weight._scale`."""
    match = QUANTO.search(name)
    if match is None or f"{name[: match.start()]}._scale" not in files.tensors:
        return None
    target = name[: match.start()]
    if match[0] != "._data" or files.dtype(name) not in EIGHT_BIT_FLOATS | {"I8"}:
        raise UnreadableFormError("quanto weights of 2 or 4 bits")
    scale, stem = f"{target}._scale", target.removesuffix("weight")
    blocks, scale_shape = find_blocks(files, name, scale, exact=True)
    recipe = Recipe("scaled", "quanto int8" if files.dtype(name) == "I8" else "quanto float8",
                    {"weight": name, "scale": scale}, files.shape(name),
                    {"blocks": blocks, "scale_shape": scale_shape})  # fmt: skip
    return target, recipe, (f"{stem}input_scale", f"{stem}output_scale")
