"""Which tensors of a checkpoint are quantised, in which form, and what values they make.

The form is told by names, dtypes and shapes; config.json is asked only for what these leave open
(the size of a block whose last one is cut, the offset of GPTQ's zeros). So the same bytes are read
alike whatever the config says, and no optional package decides anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
SCALES = FLOATS | {"U8", "F8_E8M0"}
DEFAULT_BLOCK = 128
# Marks of forms that are recognised and not read.
UNREAD = (
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.(codebooks|codes)$"), "AQLM"),
    (re.compile(r"\.(centroids|res_centroids)$"), "VPTQ"),
    (re.compile(r"\.(dense_weights|row_offsets)$"), "SpQR"),
    (re.compile(r"\.(Qidxs|SU|SV)$"), "QuIP#"),
    (re.compile(r"\.trellis$"), "QTIP or EXL3"),
    (re.compile(r"\.q_(weight|invperm|scale_max)$"), "EXL2"),
    (re.compile(r"\.(weight_bitmask|compressed|bitmask)$"), "sparse compressed-tensors"),
)
QUANTO = re.compile(r"\._data(?:\._data)?$")


@dataclass(slots=True)
class Plan:
    """What was found: recipes by effective name, and the names in the files that they use.

    `left_out` are names that say how activations were quantised, with which no weight is made;
    `problems` are forms that were recognised and cannot be read: an example, and why.
    """

    recipes: dict[str, Recipe] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Files:
    """What forms are told by: tensors by name, the settings, the values of small tensors."""

    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    read: Callable[[str], Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Dtype of a tensor."""
        return self.tensors[name].dtype


def plan_quantised(files: Files) -> Plan:
    """Find every quantised tensor and the recipe of its values.

    Args:
        files: the tensors by name, without wrappers.
    """
    plan = Plan()
    forms = (
        _bitsandbytes4, _int_words, _fp4, _mxfp4_blocks, _subclass, _quanto, _scaled, _unread,
    )  # fmt: skip
    for name in files.tensors:
        if name in plan.used:
            continue
        for form in forms:
            try:
                made = form(files, name)
            except UnreadableFormError as error:
                plan.problems.append((name, str(error)))
                break
            if made is not None:
                target, recipe, beside = made
                plan.recipes[target] = recipe
                plan.used.update(recipe.parts.values())
                plan.left_out.update(n for n in beside if n in files.tensors)
                break
    return plan


Made = tuple[str, Recipe, tuple[str, ...]] | None


def _scaled(files: Files, name: str) -> Made:
    """8-bit floats and integers with a scale beside them."""
    dtype = files.dtype(name)
    if dtype not in EIGHT_BIT_FLOATS and dtype != "I8":
        return None
    stem = name.removesuffix("weight")
    names = [f"{name}_scale_inv", f"{name}_scale"]
    if stem != name:
        names += [f"{stem}scale", f"{stem}qscale_weight", f"{stem}scale_inv", f"{stem}SCB"]
    scale = next((n for n in names if _holds(files, n, SCALES)), None)
    if scale is None:
        return None  # refused where a parameter would take it
    shape, factor, scheme = files.shape(name), 1.0, "FP8" if dtype != "I8" else "int8"
    parts, beside = {"weight": name, "scale": scale}, []
    if scale.endswith("SCB"):
        scheme, factor = "bitsandbytes int8", 1 / 127
        beside.append(f"{stem}weight_format")
        _check_format(files, f"{stem}weight_format")
    zero = f"{name}_zero_point"
    if zero in files.tensors:
        parts["zero"] = zero
    blocks, scale_shape = _blocks(files, name, scale, exact=dtype == "I8")
    by_row = len(shape) == 3 and len(files.shape(scale)) > 1 and scale_shape[0] == shape[0] > 1
    settings: dict[str, Any] = {
        "blocks": blocks,
        "factor": factor,
        "scale_shape": (-1, *scale_shape[1:]) if by_row else scale_shape,
    }
    kind = _kind(shape, scale_shape)
    return name, Recipe("scaled", f"{scheme}{kind}", parts, shape, settings, by_row), (*beside,)


def _kind(shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> str:
    if math.prod(scale_shape) == 1:
        return ", one scale a tensor"
    if scale_shape[-1] == 1 and scale_shape[-2:-1] in ((), shape[-2:-1]):
        return ", one scale a row"
    return ", scales by block"


def _blocks(
    files: Files, name: str, scale: str, *, exact: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns that share a scale, and the scale's shape with as many dimensions."""
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
        _values(files.settings, "block_structure"), None
    )
    blocks = []
    for axis, (size, count) in enumerate(zip(shape, scale_shape, strict=True)):
        from_end = len(shape) - axis
        known = stated[-from_end] if isinstance(stated, list) and from_end <= len(stated) else None
        blocks.append(_block(size, count, known if type(known) is int else None, exact=exact))
    return tuple(blocks), scale_shape


def _block(size: int, count: int, stated: int | None, *, exact: bool) -> int:
    """How many elements of a dimension share one of `count` scales."""
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


def _check_format(files: Files, name: str) -> None:
    """Bitsandbytes keeps rows as they are (0); other orders are of cards that are gone."""
    if name in files.tensors and int(files.read(name).reshape(-1)[0]) != 0:
        raise UnreadableFormError("bitsandbytes int8 in the column order of a GPU")


def _bitsandbytes4(files: Files, name: str) -> Made:
    """A weight in bytes with `.absmax`, `.quant_map` and `.quant_state…` below its name."""
    absmax = f"{name}.absmax"
    if absmax not in files.tensors or f"{name}.quant_map" not in files.tensors:
        return None
    kinds = [n for k in ("nf4", "fp4")
             if (n := f"{name}.quant_state.bitsandbytes__{k}") in files.tensors]  # fmt: skip
    if not kinds:
        raise UnreadableFormError("bitsandbytes 4-bit without its quant_state (an old version's)")
    from moegeo_cli.checkpoints.quantised.values import read_state

    state = read_state(files.read(kinds[0]))
    parts = {"weight": name, "absmax": absmax, "map": f"{name}.quant_map", "state": kinds[0]}
    if f"{name}.nested_absmax" in files.tensors:
        parts["nested_absmax"] = f"{name}.nested_absmax"
        parts["nested_map"] = f"{name}.nested_quant_map"
    scheme = f"bitsandbytes {kinds[0].rpartition('__')[2]}"
    return name, Recipe("bitsandbytes-4bit", scheme, parts, tuple(state["shape"])), ()


def _int_words(files: Files, name: str) -> Made:
    """Integers of a few bits in 32-bit words: compressed-tensors, GPTQ, AWQ, MLX."""
    dtype, (stem, _, last) = files.dtype(name), name.rpartition(".")
    if last == "weight_packed" and dtype == "I32":
        return _compressed(files, name, stem)
    if last == "qweight" and dtype == "I32":
        return _gptq_or_awq(files, name, stem)
    if last == "weight" and dtype == "U32" and f"{stem}.scales" in files.tensors:
        raise UnreadableFormError("MLX")
    return None


def _compressed(files: Files, name: str, stem: str) -> Made:
    parts = {"weight": name, "scale": f"{stem}.weight_scale"}
    stated = f"{stem}.weight_shape"
    if parts["scale"] not in files.tensors or stated not in files.tensors:
        raise UnreadableFormError("compressed-tensors packed weights without scale or shape")
    shape = tuple(int(n) for n in files.read(stated).reshape(-1))
    words = files.shape(name)[-1]
    bits = [b for b in range(1, 9) if -(-shape[-1] * b // 32) == words]
    said = _search(files.settings, "num_bits")
    bit = next((b for b in bits if b == said), bits[0] if len(bits) == 1 else None)
    if bit is None:
        raise UnreadableFormError("compressed-tensors packed weights whose number of bits is open")
    for role, last in (("zero", "weight_zero_point"), ("group", "weight_g_idx")):
        if f"{stem}.{last}" in files.tensors:
            parts[role] = f"{stem}.{last}"
    if len(shape) != 2:
        raise UnreadableFormError("compressed-tensors packed experts in one tensor")
    recipe = Recipe("packed-groups", f"compressed-tensors int{bit}", parts, shape, {"bits": bit})
    return f"{stem}.weight", recipe, (stated,)


def _gptq_or_awq(files: Files, name: str, stem: str) -> Made:
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
            raise UnreadableFormError("GPTQ with a number of bits that is open")
        second = files.settings.get("checkpoint_format") == "gptq_v2"
        recipe = Recipe("gptq", f"GPTQ int{bits}", parts, (outputs, inputs),
                        {"bits": bits, "offset": 0 if second else 1})  # fmt: skip
        return f"{stem}.weight", recipe, ()
    if columns * 8 == outputs and zeros == (groups, columns) and rows % groups == 0:
        recipe = Recipe("awq", "AWQ int4", parts, (outputs, rows))
        return f"{stem}.weight", recipe, ()
    raise UnreadableFormError("packed integer weights of a kind that is not known")


def _fp4(files: Files, name: str) -> Made:
    """Two 4-bit floats a byte: NVFP4 of compressed-tensors and ModelOpt, MXFP4."""
    if files.dtype(name) != "U8":
        return None
    if name.endswith(".weight_packed"):
        target = name.removesuffix("_packed")
        scale, divisor = f"{target}_scale", f"{target}_global_scale"
        beside = (f"{target.removesuffix('weight')}input_global_scale",)
        roles = {"divisor": divisor} if divisor in files.tensors else {}
    elif f"{name}_scale" in files.tensors and f"{name}.absmax" not in files.tensors:
        target, scale = name, f"{name}_scale"
        beside = (f"{name.removesuffix('weight')}input_scale",)
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
    return target, Recipe("fp4", kind, parts, (*rows, width)), beside


def _mxfp4_blocks(files: Files, name: str) -> Made:
    """gpt-oss's own layout: `…_blocks` and `…_scales`."""
    if not name.endswith("_blocks") or files.dtype(name) != "U8":
        return None
    target = name.removesuffix("_blocks")
    scale, shape = f"{target}_scales", files.shape(name)
    if not _holds(files, scale, {"U8"}) or files.shape(scale) != shape[:-1] or len(shape) != 4:
        raise UnreadableFormError("MXFP4 blocks without the scales that belong to them")
    experts, rows, groups, half = shape
    recipe = Recipe("mxfp4-blocks", "MXFP4", {"weight": name, "scale": scale},
                    (experts, groups * half * 2, rows), by_row=True)  # fmt: skip
    return target, recipe, ()


def _subclass(files: Files, name: str) -> Made:
    """torchao: `_weight_qdata` and its companions in the place of `weight`."""
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
    blocks, scale_shape = _blocks(files, name, scale, exact=True)
    settings = {"blocks": blocks, "scale_shape": scale_shape}
    scheme = "torchao int8" if dtype == "I8" else "torchao float8"
    return target, Recipe("scaled", scheme, parts, files.shape(name), settings), ()


def _quanto(files: Files, name: str) -> Made:
    """optimum-quanto: `weight._data` and `weight._scale`."""
    match = QUANTO.search(name)
    if match is None or f"{name[: match.start()]}._scale" not in files.tensors:
        return None
    target = name[: match.start()]
    if match[0] != "._data" or files.dtype(name) not in EIGHT_BIT_FLOATS | {"I8"}:
        raise UnreadableFormError("quanto weights of 2 or 4 bits")
    scale, stem = f"{target}._scale", target.removesuffix("weight")
    blocks, scale_shape = _blocks(files, name, scale, exact=True)
    recipe = Recipe("scaled", "quanto int8" if files.dtype(name) == "I8" else "quanto float8",
                    {"weight": name, "scale": scale}, files.shape(name),
                    {"blocks": blocks, "scale_shape": scale_shape})  # fmt: skip
    return target, recipe, (f"{stem}input_scale", f"{stem}output_scale")


def _unread(files: Files, name: str) -> Made:
    for pattern, form in UNREAD:
        if pattern.search(name):
            raise UnreadableFormError(form)
    return None


def _holds(files: Files, name: str, dtypes: frozenset[str] | set[str]) -> bool:
    return name in files.tensors and files.dtype(name) in dtypes


def _search(settings: Mapping[str, Any], key: str) -> Any:
    """The only value of a key anywhere in nested settings; None where several differ."""
    found = {v for v in _values(settings, key) if type(v) is int}
    return found.pop() if len(found) == 1 else None


def _values(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, key)
