"""Read captured router inputs: for each router, one row a token.

A capture is a safetensors file, or a folder of them (one a rank, for instance). Its metadata holds
a JSON object under `moegeo.captures`: `version` (1) and, where known, `step` (of the run),
`fingerprint` (of the checkpoint), `training` (true or false) and `domains` (names). Its tensors:

- `sequence` (T): number of each row's sequence; rows of one sequence are contiguous;
- `router.PATH.inputs` (T, D): input of the router at this module path;
- optionally `router.PATH.logits` (T, E), `.selected` (T, K), `.weights` (T, K): its outputs;
- optionally `domains` (T): number of each row's domain; `token_ids` (T), which moegeo ignores.

Values stay in their files until a batch reads its rows. Nothing here imports torch.

Legend: T rows, D router input width, E experts, K experts selected per token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.captures.megatron import TRACES, read_trace
from moegeo_cli.captures.rows import HINT, CapturedRouter, Captures, Column, map_file
from moegeo_cli.checkpoints.headers import NUMPY_DTYPES, Header, TensorInfo, read_header
from moegeo_cli.checkpoints.routers import layer_of
from moegeo_cli.errors import MoegeoError, ProbeError

FORMAT, VERSION = "moegeo.captures", 1
KINDS = ("inputs", "logits", "selected", "weights")


def read_captures(path: Path) -> Captures:
    """Read a capture's headers and its sequences.

    Args:
        path: a file, a folder of files, or a folder that Megatron's router tracer wrote.

    Raises:
        ProbeError: `path` holds no capture, one of another version, or a damaged one.
    """
    try:
        if path.is_dir() and any(path.glob(TRACES)):
            return read_trace(path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise ProbeError(
                f"{path} holds no captured router inputs",
                found="no such file" if not path.exists() else "no .safetensors in the folder",
                hint=HINT,
            )
        parts = [_read_file(file) for file in files]
    except MoegeoError as error:
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(
            f"{path.name} cannot be read as captured router inputs",
            found=f"{error.message}: {error.found}",
            hint=HINT,
        ) from error
    except OSError as error:
        raise ProbeError(f"{path} cannot be read", found=error.strerror, hint=HINT) from error
    return _join(path.resolve().name, parts)


def _rows_in(mapped: np.ndarray, info: TensorInfo) -> np.ndarray:
    """A tensor in a memory-mapped file, as a view; bfloat16 as uint16."""
    kind = np.dtype(NUMPY_DTYPES[info.dtype])
    return np.frombuffer(mapped, kind, info.elements, info.start).reshape(info.shape)


def _read_file(path: Path) -> Captures:
    header, mapped = read_header(path), map_file(path)
    facts = _read_facts(path, header)
    routers = _routers(path, header, mapped)
    rows = next(iter(routers.values())).columns["inputs"].rows
    sequence_T = _integers(path, header, mapped, "sequence", rows)
    if sequence_T is None:
        raise ProbeError(f"{path.name} does not say which sequence its rows belong to", hint=HINT)
    cuts = np.flatnonzero(np.diff(sequence_T)) + 1
    starts = [0, *cuts.tolist()]
    if len({int(sequence_T[s]) for s in starts}) != len(starts):
        raise ProbeError(f"the rows of a sequence in {path.name} are not contiguous", hint=HINT)
    number_T = _integers(path, header, mapped, "domains", rows)
    named = facts.get("domains")
    names: Sequence[object] = named if isinstance(named, list) else ()
    domains = [None if number_T is None else _domain(names, int(number_T[s])) for s in starts]
    step, own = facts.get("step"), facts.get("fingerprint")
    return Captures(
        name=path.name,
        routers=routers,
        lengths=tuple(int(n) for n in np.diff([*starts, rows])),
        domains=tuple(domains),
        sha256=_hash(path),
        step=step if type(step) is int and step >= 0 else None,
        fingerprint=own if isinstance(own, str) else None,
        notes=("captured in training mode: with dropout and jitter, where the model has them",)
        if facts.get("training") is True
        else (),
    )


def _routers(path: Path, header: Header, mapped: np.ndarray) -> dict[str, CapturedRouter]:
    routers: dict[str, CapturedRouter] = {}
    for name, info in header.tensors.items():
        kind = name.rpartition(".")[2]
        if not name.startswith("router.") or kind not in KINDS:
            continue
        own = name.removeprefix("router.").removesuffix(f".{kind}")
        floats = {"F64", "F32", "F16", "BF16"} if kind != "selected" else {"I64", "I32", "I16"}
        if len(info.shape) != 2 or info.dtype not in floats:
            raise ProbeError(f"{name} in {path.name} is not a table of the expected dtype",
                             found=f"{info.dtype} {list(info.shape)}", hint=HINT)  # fmt: skip
        column = Column(info.shape[1])
        column.add(_rows_in(mapped, info))
        routers.setdefault(own, CapturedRouter(own, layer_of(own))).columns[kind] = column
    counts = {c.rows for router in routers.values() for c in router.columns.values()}
    lacking = [own for own, router in routers.items() if "inputs" not in router.columns]
    if not routers or lacking or len(counts) != 1 or counts == {0}:
        raise ProbeError(
            f"{path.name} is not a complete capture",
            found=f"no inputs of {lacking[0]}" if lacking else f"{len(routers)} routers with "
            f"{', '.join(map(str, sorted(counts))) or 'no'} rows",
            hint=HINT,
        )  # fmt: skip
    return routers


def _integers(
    path: Path, header: Header, mapped: np.ndarray, name: str, rows: int
) -> np.ndarray | None:
    """A tensor with one integer for each row; None where the file has none of that name."""
    info = header.tensors.get(name)
    if info is None:
        return None
    if info.dtype not in {"I64", "I32"} or info.shape != (rows,):
        raise ProbeError(f"{name} in {path.name} does not hold one whole number for each row",
                         found=f"{info.dtype} {list(info.shape)} for {rows} rows")  # fmt: skip
    return np.array(_rows_in(mapped, info))


def _read_facts(path: Path, header: Header) -> Mapping[str, Any]:
    """The JSON object in the file's metadata."""
    found: Any = None
    try:
        found = json.loads(header.metadata.get(FORMAT, "null"))
    except (ValueError, RecursionError):
        found = "no JSON"
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ProbeError(
            f"{path.name} holds no captured router inputs of version {VERSION}",
            found=f"{FORMAT} in its metadata: {ascii(found)[:80]}",
            hint=HINT,
        )
    return found


def _domain(names: Sequence[object], number: int) -> str | None:
    name = names[number] if 0 <= number < len(names) else str(number)
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 80 else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _join(name: str, parts: Sequence[Captures]) -> Captures:
    """Join the files of one capture, in the order of their names."""
    first = parts[0]
    routers = dict(first.routers)
    for part in parts[1:]:
        for path, router in routers.items():
            other = part.routers.get(path)
            form = {kind: column.width for kind, column in router.columns.items()}
            if (
                other is None
                or len(part.routers) != len(routers)
                or {kind: column.width for kind, column in other.columns.items()} != form
            ):
                raise ProbeError(f"{part.name} and {first.name} are not parts of one capture",
                                 found=f"they differ in the router {path}")  # fmt: skip
            for kind, column in router.columns.items():
                for block in other.columns[kind].blocks:
                    column.add(block)
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    steps, prints = {p.step for p in parts}, {p.fingerprint for p in parts}
    return Captures(
        name=name,
        routers=routers,
        lengths=tuple(n for part in parts for n in part.lengths),
        domains=tuple(d for part in parts for d in part.domains),
        sha256=first.sha256 if len(parts) == 1 else digest,
        step=first.step if len(steps) == 1 else None,
        fingerprint=first.fingerprint if len(prints) == 1 else None,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
