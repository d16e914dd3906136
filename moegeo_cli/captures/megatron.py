"""Read the trace of Megatron-LM's router tracer as captured router inputs.

Source of the format: megatron/core/transformer/moe/router_trace.py (2026). A trace is a folder with
`router_trace_rank{R}.jsonl`: one record per step and router with `block`, `layer`, `num_tokens`,
`topk` and `top_indices`. Rows of bfloat16 lie in `hidden_states_rank{R}.bin` and
`logits_rank{R}.bin`; a record gives its place in the first by `hs_offset`, `hs_bytes`, `hs_shape`,
in the second by the same keys with `logit_`. Router weights in the trace
(`router_state_rank{R}.pt`) are ignored; those of the checkpoint are used.

A trace does not say where sequences end. All tokens of one step on one rank count as one sequence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.captures.rows import CapturedRouter, Captures, Column, map_file
from moegeo_cli.errors import ProbeError

TRACES = "router_trace_rank*.jsonl"
MAX_LINE_BYTES = 2**30  # a record holds the selected experts of all tokens of a step as text
SIDECARS = {"inputs": ("hs", "hidden_states"), "logits": ("logit", "logits")}
HINT = "trace with --moe-routing-trace-capture-hidden-states, and with --cuda-graph-impl none"
Key = tuple[int, int]  # rank, step


def read_trace(folder: Path) -> Captures:
    """Read a folder that Megatron's tracer wrote.

    Raises:
        ProbeError: the trace is damaged, or lacks the routers' inputs.
    """
    by_layer: dict[int, dict[Key, dict[str, np.ndarray]]] = {}
    tokens: dict[Key, int] = {}
    left_out = 0
    mapped: dict[Path, np.ndarray] = {}
    digest = hashlib.sha256()
    for path in sorted(folder.glob(TRACES)):
        for number, record in _records(path, digest):
            if record["block"] != "decoder":
                left_out += 1
                continue
            key = (record["rank"], record["step"])
            blocks = _blocks(folder, record, mapped, f"line {number} of {path.name}")
            if by_layer.setdefault(record["layer"], {}).setdefault(key, blocks) is not blocks:
                raise _broken(f"line {number} of {path.name}", "the same step and layer twice")
            if tokens.setdefault(key, len(blocks["inputs"])) != len(blocks["inputs"]):
                raise _broken(
                    f"line {number} of {path.name}", "another number of tokens than other layers"
                )
    if not by_layer:
        raise ProbeError(f"the trace in {folder.name} holds no decoder record", hint=HINT)
    for name in sorted({f"{stem}_rank{rank}.bin" for rank, _ in tokens
                        for _, stem in SIDECARS.values()}):  # fmt: skip
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    keys = _distinct(sorted(tokens), by_layer[min(by_layer)])
    routers = {f"decoder.layers.{layer}.mlp.router": _join(layer, steps, keys)
               for layer, steps in sorted(by_layer.items())}  # fmt: skip
    notes = ["Megatron's trace: the tokens of a step on a rank count as one sequence"]
    if len(keys) < len(tokens):
        notes.append(f"{len(tokens) - len(keys)} of {len(tokens)} ranks' steps repeat another "
                     "rank's, as under tensor parallelism: left out")  # fmt: skip
    if left_out:
        notes.append(f"{left_out} records of multi-token prediction layers were left out")
    return Captures(
        name=folder.resolve().name,
        routers=routers,
        lengths=tuple(tokens[key] for key in keys),
        domains=(None,) * len(keys),
        sha256=digest.hexdigest(),
        notes=tuple(notes),
    )


def _distinct(keys: list[Key], steps: dict[Key, dict[str, np.ndarray]]) -> list[Key]:
    """Keep one rank of those with the same tokens in a step, which have equal inputs."""
    seen: set[tuple[int, bytes]] = set()
    kept = []
    for rank, step in keys:
        blocks = steps.get((rank, step))
        mark = (step, hashlib.sha256(blocks["inputs"].tobytes()).digest() if blocks else b"")
        if mark not in seen or not blocks:
            kept.append((rank, step))
        seen.add(mark)
    return kept


def _records(path: Path, digest: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
            digest.update(line)
            try:
                record = json.loads(line)
                numbers = [record[key] for key in ("step", "layer", "rank", "num_tokens", "topk")]
                fine = all(type(n) is int and n >= 0 for n in numbers) and isinstance(
                    record["block"], str
                )
            except (ValueError, RecursionError, KeyError, TypeError):
                fine = False
            if not fine:
                raise _broken(f"line {number} of {path.name}", "not a record of a router")
            yield number, record


def _blocks(
    folder: Path, record: dict[str, Any], mapped: dict[Path, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """A record's arrays: "inputs", "logits" if traced, and "selected"."""
    found = {}
    for kind, (prefix, stem) in SIDECARS.items():
        if f"{prefix}_offset" not in record:
            continue
        path = folder / f"{stem}_rank{record['rank']}.bin"
        offset, size = record[f"{prefix}_offset"], record.get(f"{prefix}_bytes")
        shape = record.get(f"{prefix}_shape")
        fine = (
            type(offset) is int and offset >= 0 and type(size) is int and isinstance(shape, list)
            and len(shape) == 2 and all(type(n) is int and 0 < n < 2**40 for n in shape)
            and size == 2 * shape[0] * shape[1] and shape[0] == record["num_tokens"]
        )  # fmt: skip
        if path not in mapped:
            mapped[path] = map_file(path) if path.is_file() else np.zeros(0, np.uint8)
        if not fine or size is None or len(mapped[path]) < offset + size:
            raise _broken(where, f"{path.name} does not hold what the record points to")
        found[kind] = np.frombuffer(mapped[path], "<u2", size // 2, offset).reshape(shape)
    if "inputs" not in found:
        raise ProbeError(
            f"the trace in {folder.name} holds selected experts without the routers' inputs",
            found=where,
            hint=HINT,
        )
    try:
        chosen = np.array(record["top_indices"], dtype=np.int64)
    except (ValueError, TypeError, KeyError, OverflowError):
        chosen = np.zeros(0, dtype=np.int64)
    if chosen.shape != (record["num_tokens"], record["topk"]):
        raise _broken(where, "top_indices are not num_tokens × topk")
    found["selected"] = chosen
    return found


def _join(layer: int, steps: dict[Key, dict[str, np.ndarray]], keys: list[Key]) -> CapturedRouter:
    """Join the steps of one layer, in the order of `keys`."""
    kinds = set.intersection(*(set(blocks) for blocks in steps.values()))
    router = CapturedRouter(f"decoder.layers.{layer}.mlp.router", layer)
    for kind in sorted(kinds):
        column = Column(next(iter(steps.values()))[kind].shape[1])
        for key in keys:
            block = steps.get(key, {}).get(kind)
            if block is None or block.shape[1] != column.width:
                raise ProbeError(
                    f"layer {layer} of the trace is missing in a step of a rank",
                    found=f"rank {key[0]}, step {key[1]}",
                    hint="trace without pipeline parallelism: its ranks number layers separately",
                )
            column.add(block)
        router.columns[kind] = column
    return router


def _broken(where: str, found: str) -> ProbeError:
    return ProbeError(f"the routing trace is damaged: {where}", found=found, hint=HINT)
