"""Read a safetensors file: a table of token ids, or the input tensors of another kind of model.

A file with `input_ids` is a table of token ids. Otherwise it holds samples: every tensor except
`labels` and `domains` is an input of the model, and its first axis is the samples. The file's
metadata may hold `positions` (number of tokens that a router sees of a sample, 1 by default) and
`domains` (a JSON list of names; the tensor `domains` holds indices into it).

Legend: S sequences or samples, N tokens of a sequence with padding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.packing import LOSS_MASKS, SEGMENTS, cut_row
from moegeo_cli.probes.rows import MAX_BYTES, ProbeFile, ReadOptions, Row, is_domain, printable

NAMES = ("input_ids", "labels", "attention_mask", "position_ids", *SEGMENTS, *LOSS_MASKS)
INPUTS = (
    "input_ids, and optionally labels, attention_mask, position_ids, segment_ids and loss_mask, "
    "each (sequences, tokens)"
)
MAX_POSITIONS = 2**24  # tokens of one sample: far beyond any image or recording


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The rows of a table of input_ids without padding, or the samples of a file.

    Raises:
        ProbeError: the file is damaged, or its shapes do not agree.
    """
    from safetensors import SafetensorError, safe_open

    name = printable(path.name)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ProbeError(
            f"the probe {name} is too large",
            found=f"{size / 2**20:,.0f} MiB, at most {MAX_BYTES // 2**20}",
            hint="65,536 tokens are plenty: cut the file, a part of its rows is enough",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbeError(
            f"{name} cannot be read as safetensors of numbers",
            found=str(error)[:200],
            hint="write it with safetensors.numpy or safetensors.torch; bfloat16 is not read",
        ) from error
    if "input_ids" in tensors:
        rows = tuple(_read_ids(tensors, name))
    else:
        rows = tuple(_read_samples(tensors, metadata, name))
    return ProbeFile(rows, hashlib.sha256(path.read_bytes()).hexdigest())


def _read_ids(tensors: Mapping[str, np.ndarray], name: str) -> Iterator[Row]:
    others = [printable(key) for key in tensors if key not in NAMES]
    if others:
        raise ProbeError(
            f"{name} holds inputs beside its input_ids", found=", ".join(others)[:200], hint=INPUTS
        )
    ids_SN = tensors["input_ids"]
    for key, array in tensors.items():
        kinds = "iu" if key in ("input_ids", "labels") else "iub"
        if array.ndim != 2 or array.shape != ids_SN.shape or array.dtype.kind not in kinds:
            raise ProbeError(
                f"{key} in {name} is not a table of integers like input_ids",
                found=f"{array.dtype} {array.shape}; input_ids are {ids_SN.shape}",
                hint=INPUTS,
            )
    fields_SN = {k: array.astype(np.int64) for k, array in tensors.items() if k != "input_ids"}
    for place, ids_N in enumerate(ids_SN):
        fields = {key: array[place] for key, array in fields_SN.items()}
        where = f"row {place + 1} of {name}"
        for piece in cut_row(ids_N.astype(np.int64), fields, where):
            yield Row(place + 1, input_ids=piece.input_ids, labels=piece.labels)


def _read_samples(
    tensors: dict[str, np.ndarray], metadata: Mapping[str, str], name: str
) -> Iterator[Row]:
    labels, domains = tensors.pop("labels", None), tensors.pop("domains", None)
    if not tensors:
        raise ProbeError(f"{name} holds no input of a model", hint=INPUTS)
    sizes = {key: array.shape[0] if array.ndim else 0 for key, array in tensors.items()}
    for key, array in (("labels", labels), ("domains", domains)):
        if array is None:
            continue
        sizes[key] = array.shape[0] if array.ndim else 0
        if array.dtype.kind not in "iu" or (key == "domains" and array.ndim != 1):
            raise ProbeError(f"{key} in {name} are not integers, one per sample or per position",
                             found=f"{array.dtype} {array.shape}")  # fmt: skip
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{printable(key)} has {size}" for key, size in sizes.items())
        raise ProbeError(f"the tensors in {name} do not agree on the number of samples",
                         found=found[:200])  # fmt: skip
    for key, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProbeError(f"{printable(key)} in {name} holds NaN or infinite values")
    positions = _positions(metadata, name)
    names = _domain_names(metadata, domains, name)
    for place in range(next(iter(sizes.values()))):
        yield Row(
            place + 1,
            labels=None if labels is None else np.asarray(labels[place], dtype=np.int64),
            domain=None if domains is None else names[int(domains[place])],
            inputs={key: array[place] for key, array in tensors.items()},
            positions=positions,
        )


def _positions(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get("positions", "1")
    if not (text.isdecimal() and text.isascii() and len(text) < 9):
        text = "0"
    if not 0 < int(text) <= MAX_POSITIONS:
        raise ProbeError(
            f"positions in the metadata of {name} is not a number of tokens",
            found=ascii(metadata.get("positions"))[:80],
            hint="give the number of tokens that a router sees of one sample",
        )
    return int(text)


def _domain_names(
    metadata: Mapping[str, str], domains: np.ndarray | None, name: str
) -> Mapping[int, str]:
    """The name of each number in `domains`: from the metadata, or else the number as text."""
    if domains is None:
        return {}
    found: object = None
    try:
        found = json.loads(metadata["domains"]) if "domains" in metadata else None
    except (ValueError, RecursionError):
        found = ()
    numbers = sorted({int(d) for d in domains})
    if found is None:
        return {number: str(number) for number in numbers}
    valid = isinstance(found, list) and all(is_domain(n) for n in found)
    if not isinstance(found, list) or not valid or (numbers and numbers[-1] >= len(found)) or (
        numbers and numbers[0] < 0
    ):  # fmt: skip
        raise ProbeError(
            f"domains in the metadata of {name} do not name the numbers in its tensor",
            found=ascii(metadata.get("domains"))[:80],
            hint="a JSON list of short names, one for each number from 0",
        )
    return dict(enumerate(found))
