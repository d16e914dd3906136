"""Router inputs that were captured earlier, by file: what each router saw, token by token.

A capture is a safetensors file, or a folder of them, one a rank for instance. Its metadata holds,
under `moegeo.captures`, a JSON object with `version` (1) and, as far as known, `step` (of the run),
`fingerprint` (of the checkpoint), `training` (true or false) and `domains` (names). Tensors:

- `sequence` (T): which sequence each row belongs to; rows of one sequence lie together;
- `router.PATH.inputs` (T, D): what the weight of the router at this module path was given;
- optionally `router.PATH.logits` (T, E), `.selected` (T, K), `.weights` (T, K): what it made of it;
- optionally `domains` (T): the number of each row's domain; `token_ids` (T), which nothing reads.

Values stay in their files until a batch asks for its rows. Nothing here imports torch.

Legend: T rows, D router input width, E experts, K experts chosen per token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.headers import NUMPY_DTYPES, Header, TensorInfo, read_header
from moegeo_cli.checkpoints.routers import layer_of
from moegeo_cli.errors import MoegeoError, ProbeError
from moegeo_cli.probes import Probe, Sample

FORMAT, VERSION = "moegeo.captures", 1
KINDS = ("inputs", "logits", "selected", "weights")
HINT = "write it with moegeo_cli.capture_routers; see docs/how-to/own-models.md"


@dataclass(slots=True)
class Column:
    """Rows of one kind, in blocks that lie in files; `dtype` is that of the first of them."""

    width: int
    blocks: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rows: int = 0
    dtype: str = ""

    def add(self, block: np.ndarray) -> None:
        """Further rows; two-byte unsigned integers are bfloat16."""
        if not self.blocks:
            self.dtype = {"uint16": "bfloat16"}.get(block.dtype.name, block.dtype.name)
        self.blocks.append(block)
        self.starts.append(self.rows)
        self.rows += len(block)

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Rows by number, (N, width): float32, or int64 where whole numbers were saved."""
        whole = self.blocks[0].dtype.kind == "i"
        found = np.empty((len(rows_N), self.width), dtype=np.int64 if whole else np.float32)
        place_N = np.searchsorted(self.starts, rows_N, side="right") - 1
        for place in np.unique(place_N):
            mine = place_N == place
            values = np.asarray(self.blocks[place][rows_N[mine] - self.starts[place]])
            if values.dtype == np.uint16:
                values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
            found[mine] = values
        return found


@dataclass(slots=True)
class CapturedRouter:
    """One router's columns by kind; "inputs" is always there."""

    path: str
    layer: int | None
    columns: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captures:
    """What was captured: routers by path, the sequences that rows belong to, and from where.

    `step` and `fingerprint` tell the checkpoint, None where unknown. `notes` must be reported.
    """

    name: str
    routers: Mapping[str, CapturedRouter]
    lengths: tuple[int, ...]
    domains: tuple[str | None, ...]
    sha256: str
    step: int | None = None
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()

    def probe(self) -> Probe:
        """The captured sequences in the place of a probe: a router's input is row numbers."""
        starts = np.cumsum([0, *self.lengths])
        samples = tuple(
            Sample({"rows": np.arange(a, b)}, int(b - a), None, domain)
            for a, b, domain in zip(starts[:-1], starts[1:], self.domains, strict=True)
        )
        return Probe(self.name, samples, self.sha256, "captured")


def read_captures(path: Path) -> Captures:
    """Read a capture's headers and its sequences.

    Args:
        path: a file, or a folder of them; a folder that Megatron's router tracer wrote counts too.

    Raises:
        ProbeError: no capture, of another version, or damaged.
    """
    from moegeo_cli.replay.megatron import TRACES, read_trace

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


def map_file(path: Path) -> np.ndarray:
    """A file's bytes, mapped: once a file, since every mapping holds it open."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def _rows_in(mapped: np.ndarray, info: TensorInfo) -> np.ndarray:
    """A table in a mapped file: bfloat16 as uint16, all else as it is."""
    kind = np.dtype(NUMPY_DTYPES[info.dtype])
    return np.frombuffer(mapped, kind, info.elements, info.start).reshape(info.shape)


def _read_file(path: Path) -> Captures:
    header, mapped = read_header(path), map_file(path)
    facts = _facts(path, header)
    routers = _routers(path, header, mapped)
    rows = next(iter(routers.values())).columns["inputs"].rows
    sequence_T = _whole(path, header, mapped, "sequence", rows)
    if sequence_T is None:
        raise ProbeError(f"{path.name} does not say which sequence its rows belong to", hint=HINT)
    cuts = np.flatnonzero(np.diff(sequence_T)) + 1
    starts = [0, *cuts.tolist()]
    if len({int(sequence_T[s]) for s in starts}) != len(starts):
        raise ProbeError(f"the rows of a sequence in {path.name} do not lie together", hint=HINT)
    number_T = _whole(path, header, mapped, "domains", rows)
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
            raise ProbeError(f"{name} in {path.name} is not a table of numbers of its kind",
                             found=f"{info.dtype} {list(info.shape)}", hint=HINT)  # fmt: skip
        column = Column(info.shape[1])
        column.add(_rows_in(mapped, info))
        routers.setdefault(own, CapturedRouter(own, layer_of(own))).columns[kind] = column
    counts = {c.rows for router in routers.values() for c in router.columns.values()}
    lacking = [own for own, router in routers.items() if "inputs" not in router.columns]
    if not routers or lacking or len(counts) != 1 or counts == {0}:
        raise ProbeError(
            f"{path.name} is no whole capture",
            found=f"no inputs of {lacking[0]}" if lacking else f"{len(routers)} routers with "
            f"{', '.join(map(str, sorted(counts))) or 'no'} rows",
            hint=HINT,
        )  # fmt: skip
    return routers


def _whole(
    path: Path, header: Header, mapped: np.ndarray, name: str, rows: int
) -> np.ndarray | None:
    """A column of whole numbers, one a row."""
    info = header.tensors.get(name)
    if info is None:
        return None
    if info.dtype not in {"I64", "I32"} or info.shape != (rows,):
        raise ProbeError(f"{name} in {path.name} is not one whole number a row",
                         found=f"{info.dtype} {list(info.shape)} for {rows} rows")  # fmt: skip
    return np.array(_rows_in(mapped, info))


def _facts(path: Path, header: Header) -> Mapping[str, Any]:
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
    """Files of one capture, one after the other."""
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
