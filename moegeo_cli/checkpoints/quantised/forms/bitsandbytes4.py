"""Recognise bitsandbytes 4-bit weights (nf4 and fp4)."""

from __future__ import annotations

from moegeo_cli.checkpoints.quantised.files import Files, FormResult
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError


def read_bitsandbytes4(files: Files, name: str) -> FormResult:
    """Weights with `.absmax`, `.quant_map` and `.quant_state…` below their name."""
    absmax = f"{name}.absmax"
    if absmax not in files.tensors or f"{name}.quant_map" not in files.tensors:
        return None
    kinds = [n for k in ("nf4", "fp4")
             if (n := f"{name}.quant_state.bitsandbytes__{k}") in files.tensors]  # fmt: skip
    if not kinds:
        raise UnreadableFormError("bitsandbytes 4-bit without its quant_state (an old version's)")
    from moegeo_cli.checkpoints.quantised.values import parse_state

    state = parse_state(files.read(kinds[0]))
    parts = {"weight": name, "absmax": absmax, "map": f"{name}.quant_map", "state": kinds[0]}
    if f"{name}.nested_absmax" in files.tensors:
        parts["nested_absmax"] = f"{name}.nested_absmax"
        parts["nested_map"] = f"{name}.nested_quant_map"
    scheme = f"bitsandbytes {kinds[0].rpartition('__')[2]}"
    return name, Recipe("bitsandbytes-4bit", scheme, parts, tuple(state["shape"])), ()
