"""The same sequences, written in every form of a probe file by the form's own writer."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import feather, parquet
from safetensors.numpy import save_file

FILES = Path(__file__).parent / "files"
END = 63  # the id that ends every sequence, and occurs nowhere else in it
Sequences = list[list[int]]


def sequences(lengths: tuple[int, ...] = (9, 30, 17, 44, 5, 61), seed: int = 0) -> Sequences:
    generator = np.random.default_rng(seed)
    return [[*generator.integers(0, END, n - 1).tolist(), END] for n in lengths]


def packed(ids: Sequences, width: int = 100) -> list[tuple[list[int], list[int], list[int]]]:
    """Rows of ids, positions and segments, filled up to a width with padding."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for own in ids:
        if not rows or len(rows[-1][0]) + len(own) > width:
            rows.append(([], [], []))
        tokens, positions, segments = rows[-1]
        segments += [(segments[-1] if segments else 0) + 1] * len(own)
        positions += range(len(own))
        tokens += own
    return [
        tuple(part + [0] * (width - len(part)) for part in row)  # type: ignore[misc]
        for row in rows
    ]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(ids: Sequences, path: Path) -> Path:
    return lines(path, [{"input_ids": own} for own in ids])


def padded(ids: Sequences, path: Path, *, left: bool = False) -> Path:
    rows = []
    for own in ids:
        pad = [0] * (80 - len(own))
        mask, tokens = [1] * len(own), own
        rows.append(
            {"input_ids": pad + tokens, "attention_mask": pad + mask}
            if left
            else {"input_ids": tokens + pad, "attention_mask": mask + pad}
        )
    return lines(path, rows)


def table(ids: Sequences) -> Any:
    return pyarrow.table({"input_ids": pyarrow.array(ids, pyarrow.list_(pyarrow.int32()))})


def write_parquet(ids: Sequences, path: Path) -> Path:
    parquet.write_table(table(ids), path, row_group_size=2)
    return path


def write_stream(ids: Sequences, path: Path) -> Path:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(
        file, table(ids).schema
    ) as writer:  # fmt: skip
        writer.write_table(table(ids), max_chunksize=2)
    return path


def write_feather(ids: Sequences, path: Path) -> Path:
    feather.write_feather(table(ids), str(path))
    return path


def kept(name: str) -> Callable[[Sequences, Path], Path]:
    """What the form's own writer made of the same sequences: see `write`."""

    def copy(ids: Sequences, path: Path) -> Path:
        assert ids == sequences()
        source = FILES / name
        if source.is_dir():
            shutil.copytree(source, path)
            return path
        for file in FILES.glob(f"{source.stem}.*"):  # Megatron's two go together
            shutil.copy(file, path.with_suffix(file.suffix))
        return path

    return copy


def tokens(ids: Sequences, path: Path, kind: str) -> Path:
    np.concatenate(ids).astype(kind).tofile(path)
    return path


def llm_c(ids: Sequences, path: Path) -> Path:
    flat = np.concatenate(ids).astype("<u2")
    head = np.zeros(256, "<i4")
    head[:3] = 20240520, 1, len(flat)
    path.write_bytes(head.tobytes() + flat.tobytes())
    return path


def saved_array(ids: Sequences, path: Path, kind: str = "<u2") -> Path:
    np.save(path, np.concatenate(ids).astype(kind))
    return path


def compressed(ids: Sequences, path: Path, write: Callable[..., Any]) -> Path:
    data = plain(ids, path.parent / "raw.jsonl").read_bytes()
    with write(path, "wb") as file:
        file.write(data)
    return path


def tensors(ids: Sequences, path: Path) -> Path:
    rows = packed(ids)
    arrays = [np.array([row[part] for row in rows]) for part in range(3)]
    save_file(dict(zip(("input_ids", "position_ids", "attention_mask"), arrays, strict=True)), path)
    return path


def json_array(ids: Sequences, path: Path) -> Path:
    path.write_text(json.dumps([{"input_ids": own} for own in ids], indent=1))
    return path


def packed_as(*names: str) -> Callable[[Sequences, Path], Path]:
    """Packed rows that say by these fields where a sequence begins."""

    def write(ids: Sequences, path: Path) -> Path:
        rows = []
        for own, positions, segments in packed(ids):
            real = sum(s > 0 for s in segments)
            sizes = [segments.count(s) for s in sorted(set(segments) - {0})]
            known = {
                "position_ids": positions, "segment_ids": segments, "seq_lengths": sizes,
                "attention_mask": [int(s > 0) for s in segments], "numbered_mask": segments,
                "cu_seqlens": [0, *np.cumsum(sizes).tolist()],
            }  # fmt: skip
            row = {n.replace("numbered", "attention"): known[n] for n in names}
            cut = (
                real if not {"attention_mask", "numbered_mask", "segment_ids"} & {*names} else None
            )
            rows.append({
                "input_ids": own[:cut],
                **{n: v[:cut] if len(v) == len(own) else v for n, v in row.items()},
            })  # fmt: skip
        return lines(path, rows)

    return write


# name -> (file name, writer); each of the same sequences
SAME: Mapping[str, tuple[str, Callable[[Sequences, Path], Path]]] = {
    "JSON Lines": ("a.jsonl", plain),
    "padded on the right": ("a.jsonl", padded),
    "padded on the left": ("a.jsonl", lambda ids, path: padded(ids, path, left=True)),
    "packed by positions": ("a.jsonl", packed_as("position_ids")),
    "packed by positions, with a mask": ("a.jsonl", packed_as("position_ids", "attention_mask")),
    "packed by segments": ("a.jsonl", packed_as("segment_ids", "position_ids")),
    "packed by a numbered mask": ("a.jsonl", packed_as("numbered_mask")),
    "packed by lengths": ("a.jsonl", packed_as("seq_lengths")),
    "packed by borders": ("a.jsonl", packed_as("cu_seqlens")),
    "packed tensors": ("a.safetensors", tensors),
    "JSON array": ("a.json", json_array),
    "gz": ("a.jsonl.gz", lambda ids, path: compressed(ids, path, gzip.GzipFile)),
    "bz2": ("a.jsonl.bz2", lambda ids, path: compressed(ids, path, bz2.BZ2File)),
    "xz": ("a.jsonl.xz", lambda ids, path: compressed(ids, path, lzma.LZMAFile)),
    "zst": ("a.jsonl.zst", lambda ids, path: compressed(
        ids, path, lambda p, mode: pyarrow.output_stream(str(p), compression="zstd"))),
    "Parquet": ("a.parquet", write_parquet),
    "Arrow stream": ("a.arrow", write_stream),
    "Feather": ("a.feather", write_feather),
    "datasets: save_to_disk": ("saved", kept("saved")),
    "datasets: save_to_disk in shards": ("saved", kept("saved-in-shards")),
    "datasets: a saved selection": ("saved", kept("saved-selection")),
    "datasets: one of several splits": ("train", kept("splits/train")),
    "datasets: its cache": ("cache", kept("cache")),
    "datasets: to_parquet": ("a.parquet", kept("rows.parquet")),
    "Megatron": ("a.bin", kept("megatron-uint16.bin")),
    "Megatron, the index given": ("a.idx", kept("megatron-uint16.bin")),
    "Megatron, int32": ("a.bin", kept("megatron-int32.bin")),
    "Megatron, documents of sentences": ("a.bin", kept("megatron-sentences.bin")),
    "uint16 tokens": ("a.bin", lambda ids, path: tokens(ids, path, "<u2")),
    "uint32 tokens": ("a.bin", lambda ids, path: tokens(ids, path, "<u4")),
    "tokens as OLMo writes them": ("a.npy", lambda ids, path: tokens(ids, path, "<u2")),
    "llm.c tokens": ("a.bin", llm_c),
    "NumPy array": ("a.npy", saved_array),
    "NumPy array of int64": ("a.npy", lambda ids, path: saved_array(ids, path, "<i8")),
}  # fmt: skip
