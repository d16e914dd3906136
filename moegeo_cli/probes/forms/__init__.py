"""The forms of a probe file: how each is recognised, and which function reads it.

Each form has one module. The first entry of `FORMS` that matches a path is its form; the last one,
plain text, matches every path. The table in docs/reference/probe-files.md is written from `FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.probes.forms import (
    array_file,
    arrow,
    delimited,
    json_array,
    json_lines,
    megatron,
    parquet,
    plain_text,
    tensors,
    token_file,
)
from moegeo_cli.probes.forms.opening import COMPRESSED, inner_suffix
from moegeo_cli.probes.rows import ProbeFile, ReadOptions

Read = Callable[[Path, ReadOptions], ProbeFile]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a probe file.

    Attributes:
        name: its usual name.
        recognised_by: how it is recognised, in words.
        matches: whether a path has this form.
        holds: which content is read; empty if the form is not supported.
        read: the function that reads it; None if the form is not supported.
        instead: what to do instead if the form is not supported.
    """

    name: str
    recognised_by: str
    matches: Callable[[Path], bool]
    holds: str = ""
    read: Read | None = None
    instead: str = ""


def _has_suffix(*suffixes: str, packed: bool = False) -> Callable[[Path], bool]:
    """A test of a path's suffix; with `packed`, a compressed file counts by its inner suffix."""
    return lambda path: (inner_suffix(path) if packed else path.suffix.lower()) in suffixes


def _is_utf16(path: Path) -> bool:
    """Whether a file's first bytes are the mark of UTF-16 or UTF-32."""
    try:
        with path.open("rb") as file:
            return file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    except OSError:
        return False


def _refused(name: str, suffixes: tuple[str, ...], instead: str) -> Form:
    recognised_by = ", ".join(f"`{s}`" for s in suffixes)
    return Form(name, recognised_by, _has_suffix(*suffixes), instead=instead)


RECORDS = "`input_ids`, `text`, `messages` or `conversations`; masks, labels, packed rows"
PACKED = ", ".join(f"`{s}`" for s in COMPRESSED)
FORMS: tuple[Form, ...] = (
    Form("JSON Lines", f"`.jsonl`, `.ndjson`; also before {PACKED}",
         _has_suffix(".jsonl", ".ndjson", packed=True), RECORDS, json_lines.read),
    Form("JSON array", f"`.json` that begins with `[`, else JSON Lines; also before {PACKED}",
         _has_suffix(".json", packed=True), RECORDS, json_array.read),
    Form("CSV, TSV", f"`.csv`, `.tsv`; also before {PACKED}",
         _has_suffix(".csv", ".tsv", packed=True), "the column `text`, and `domain`",
         delimited.read),
    Form("Parquet", "`.parquet`", _has_suffix(".parquet", ".pq"), RECORDS, parquet.read),
    Form("Arrow, Feather", "`.arrow`, `.feather`, `.ipc`",
         _has_suffix(".arrow", ".feather", ".ipc"), RECORDS, arrow.read),
    Form("data set of datasets", "a folder with `state.json`, as `save_to_disk` writes it; or with "
         "`dataset_info.json` and one split's `.arrow` files, as its cache is",
         arrow.is_saved_dataset, RECORDS, arrow.read),
    Form("safetensors", "`.safetensors`", _has_suffix(".safetensors"),
         "`input_ids` with masks and labels; or other inputs of a model", tensors.read),
    Form("NumPy array", "`.npy`", _has_suffix(".npy"),
         "a sequence a row; or a stream of tokens", array_file.read),
    Form("Megatron's indexed data set", "`.bin` with `.idx` beside it (either is given)",
         megatron.is_indexed, "its documents", megatron.read),
    Form("raw tokens, uint16 or uint32", "`.bin`, `.tok`, `.u16`, `.u32`; `.npy` without a head",
         _has_suffix(".bin", ".tok", ".u16", ".u32"), "a stream of tokens", token_file.read),
    _refused("NumPy archive", (".npz",), "save one array with `numpy.save`, or all with "
             "`safetensors.numpy.save_file`"),
    _refused("pickle", (".pt", ".pth", ".pkl", ".pickle"), "`safetensors.torch.save_file`: a "
             "pickle can run code"),
    _refused("TFRecord", (".tfrecord", ".tfrecords"), "write its text as JSON Lines"),
    _refused("MosaicML shard", (".mds",), "write `StreamingDataset(local=…)` out as JSON Lines"),
    _refused("tar, zip", (".tar", ".tgz", ".zip"), "take the file out of it"),
    Form("UTF-16 text", "its first two bytes", _is_utf16,
         instead="`iconv -f UTF-16 -t UTF-8 FILE`"),
    Form("plain text, UTF-8", "every other name", lambda path: True,
         "passages of at most 1,000 characters", plain_text.read),
)  # fmt: skip


def form_of(path: Path) -> Form:
    """The form of a file, or of a folder that holds one data set."""
    return next(form for form in FORMS if form.matches(path))
