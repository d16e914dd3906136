"""Recognise low-bit integers packed in 32-bit words: compressed-tensors, GPTQ, AWQ.

MLX is recognised and refused by name.
"""

from __future__ import annotations

from moegeo_cli.checkpoints.quantised.files import Files, FormResult, find_setting
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError


def read_words(files: Files, name: str) -> FormResult:
    """Weights packed in 32-bit words; the format is told by the end of the tensor's name."""
    dtype, (stem, _, last) = files.dtype(name), name.rpartition(".")
    if last == "weight_packed" and dtype == "I32":
        return _compressed(files, name, stem)
    if last == "qweight" and dtype == "I32":
        return _gptq_or_awq(files, name, stem)
    if last == "weight" and dtype == "U32" and f"{stem}.scales" in files.tensors:
        raise UnreadableFormError("MLX")
    return None


def _compressed(files: Files, name: str, stem: str) -> FormResult:
    parts = {"weight": name, "scale": f"{stem}.weight_scale"}
    stated = f"{stem}.weight_shape"
    if parts["scale"] not in files.tensors or stated not in files.tensors:
        raise UnreadableFormError("compressed-tensors packed weights without scale or shape")
    shape = tuple(int(n) for n in files.read(stated).reshape(-1))
    words = files.shape(name)[-1]
    bits = [b for b in range(1, 9) if -(-shape[-1] * b // 32) == words]
    stated_bits = find_setting(files.settings, "num_bits")
    bit = next((b for b in bits if b == stated_bits), bits[0] if len(bits) == 1 else None)
    if bit is None:
        raise UnreadableFormError("compressed-tensors packed weights of unknown number of bits")
    for role, last in (("zero", "weight_zero_point"), ("group", "weight_g_idx")):
        if f"{stem}.{last}" in files.tensors:
            parts[role] = f"{stem}.{last}"
    if len(shape) != 2:
        raise UnreadableFormError("compressed-tensors packed experts in one tensor")
    recipe = Recipe("packed-groups", f"compressed-tensors int{bit}", parts, shape, {"bits": bit})
    return f"{stem}.weight", recipe, (stated,)


def _gptq_or_awq(files: Files, name: str, stem: str) -> FormResult:
    parts = {"weight": name, "scale": f"{stem}.scales", "zero": f"{stem}.qzeros"}
    if any(n not in files.tensors for n in parts.values()):
        raise UnreadableFormError("integer weights without scales or zeros beside them")
    (rows, columns), (groups, outputs) = files.shape(name), files.shape(parts["scale"])
    zeros = files.shape(parts["zero"])
    if columns == outputs:
        if f"{stem}.g_idx" in files.tensors:
            parts["group"] = f"{stem}.g_idx"
            inputs = files.shape(parts["group"])[0]
        else:
            bits = zeros[1] * 32 // outputs
            inputs = rows * 32 // bits if bits else 0
        bits = rows * 32 // inputs if inputs else 0
        if bits not in (2, 3, 4, 8) or inputs * bits != rows * 32:
            raise UnreadableFormError("GPTQ of unknown number of bits")
        second = files.settings.get("checkpoint_format") == "gptq_v2"
        recipe = Recipe("gptq", f"GPTQ int{bits}", parts, (outputs, inputs),
                        {"bits": bits, "offset": 0 if second else 1})  # fmt: skip
        return f"{stem}.weight", recipe, ()
    if columns * 8 == outputs and zeros == (groups, columns) and rows % groups == 0:
        recipe = Recipe("awq", "AWQ int4", parts, (outputs, rows))
        return f"{stem}.weight", recipe, ()
    raise UnreadableFormError("packed integer weights of an unknown kind")
