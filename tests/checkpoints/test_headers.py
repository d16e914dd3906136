import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.checkpoints.headers import TensorInfo, read_header, read_tensor
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    PathError,
    UnsupportedLayoutError,
)


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_agrees_with_the_reference_reader(masters):
    from safetensors import safe_open

    path = masters / "mixtral" / "model.safetensors"
    header = read_header(path)
    with safe_open(path, "np") as reference:
        assert sorted(reference.keys()) == sorted(header.tensors)
        for name, info in header.tensors.items():
            np.testing.assert_array_equal(read_tensor(path, info), reference.get_tensor(name))
    assert header.file_size == path.stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "bool"])
def test_values_of_every_dtype(tmp_path, dtype):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    values = (torch.randn(3, 5) * 100).to(getattr(torch, dtype))
    values[0, 0] = 0
    save_file({"a": values}, tmp_path / "f.safetensors")
    info = read_header(tmp_path / "f.safetensors").tensors["a"]
    ours = read_tensor(tmp_path / "f.safetensors", info)
    expected = values.float() if dtype in {"float16", "bfloat16"} else values
    np.testing.assert_array_equal(ours, expected.numpy())
    ours[0, 0] = 1  # a copy of its own, not a view of read-only bytes


def test_scalar_and_empty_tensors(tmp_path):
    header = {"s": tensor("F32", [], 0, 4), "e": tensor("F32", [0, 3], 4, 4)}
    path = write(tmp_path / "f", header, struct.pack("<f", 2.5))
    found = read_header(path).tensors
    assert read_tensor(path, found["s"]).shape == ()
    assert read_tensor(path, found["e"]).shape == (0, 3)


def test_quantised_bytes_are_not_values(tmp_path):
    path = write(tmp_path / "f", {"q": tensor("F8_E4M3", [2], 0, 2)}, b"ab")
    with pytest.raises(UnsupportedLayoutError, match="F8_E4M3"):
        read_tensor(path, read_header(path).tensors["q"])


def test_metadata_and_a_dtype_of_the_future(tmp_path):
    header = {"__metadata__": {"format": "pt", "n": 3}, "q": tensor("F3_X", [7], 0, 5)}
    found = read_header(write(tmp_path / "f", header, b"12345"))
    assert found.metadata == {"format": "pt"}
    assert found.tensors["q"].dtype == "F3_X"


BAD = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "a length of 2**63": struct.pack("<Q", 1 << 63) + b"{}",
    "a length over the bound": struct.pack("<Q", 100_000_001) + b"{}",
    "a length over the file": struct.pack("<Q", 50) + b"{}",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_broken_lengths(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(IncompleteCheckpointError, match="truncated or damaged"):
        read_header(tmp_path / "f")


BAD_HEADERS: dict[str, tuple[Any, bytes]] = {
    "not JSON": (b"{not json", b""),
    "not UTF-8": (b'{"a\xff": 1}', b""),
    "a list": ([], b""),
    "deep nesting": (b"[" * 200_000 + b"]" * 200_000, b""),
    "an endless integer": (b'{"a": ' + b"9" * 10_000 + b"}", b""),
    "an entry that is no object": ({"a": 1}, b""),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    "a negative dimension": ({"a": tensor("F32", [-1], 0, 4)}, b"1234"),
    "a boolean dimension": ({"a": {**tensor("F32", [1], 0, 4), "shape": [True]}}, b"1234"),
    "a float dimension": ({"a": {**tensor("F32", [1], 0, 4), "shape": [1.0]}}, b"1234"),
    "too many dimensions": ({"a": tensor("F32", [1] * 33, 0, 4)}, b"1234"),
    "three offsets": ({"a": {**tensor("F32", [1], 0, 4), "data_offsets": [0, 2, 4]}}, b"1234"),
    "offsets backwards": ({"a": tensor("F32", [1], 4, 0)}, b"1234"),
    "offsets beyond the file": ({"a": tensor("F32", [2], 0, 8)}, b"1234"),
    "a shape of another size": ({"a": tensor("F32", [2], 0, 4)}, b"1234"),
    "an enormous shape": ({"a": tensor("F32", [2**62] * 32, 0, 4)}, b"1234"),
    "a gap": ({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, b"123"),
    "an overlap": ({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"123"),
    "bytes left over": ({"a": tensor("U8", [1], 0, 1)}, b"12"),
    "no tensor but bytes": ({}, b"12"),
}


@pytest.mark.parametrize("bad", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_broken_headers(tmp_path, bad):
    path = write(tmp_path / "f", *bad)
    with pytest.raises(IncompleteCheckpointError, match="f is truncated or damaged"):
        read_header(path)


def test_duplicate_keys_are_read_as_json_reads_them(tmp_path):
    entry = json.dumps(tensor("U8", [1], 0, 1)).encode()
    path = write(tmp_path / "f", b'{"a": 1, "a": ' + entry + b"}", b"1")
    assert read_header(path).tensors["a"].shape == (1,)


def test_truncated_at_any_byte(masters, tmp_path):
    whole = (masters / "mixtral" / "model.safetensors").read_bytes()
    start = read_header(masters / "mixtral" / "model.safetensors").data_start
    path = tmp_path / "f"
    for cut in (0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(IncompleteCheckpointError, match="f is truncated or damaged"):
            read_header(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(IncompleteCheckpointError, match="damaged"):
        read_header(path)


def test_a_file_cut_after_its_header_was_read(tmp_path):
    path = write(tmp_path / "f", {"a": tensor("F32", [2], 0, 8)}, b"12345678")
    info = read_header(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IncompleteCheckpointError, match="f is truncated or damaged"):
        read_tensor(path, info)


def test_what_is_no_regular_file(tmp_path):
    import os

    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    words = {"absent": "cannot be read", "loop": "cannot be read",
             "pipe": "is not a regular file", ".": "is not a regular file"}  # fmt: skip
    for name, said in words.items():
        with pytest.raises(PathError, match=said):
            read_header(tmp_path / name)
    with pytest.raises(PathError, match="cannot be read"):
        read_header(Path("a\0b"))


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_end_in_a_clean_error(tmp_path_factory, raw, length):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    head = struct.pack("<Q", len(raw) if length is None else length)
    path.write_bytes(head + raw)
    try:
        header = read_header(path)
    except MoegeoError:
        return
    assert header.data_start <= header.file_size == path.stat().st_size


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["F32", "U8", "dtype", "shape"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(document=JSON, data=st.binary(max_size=16))
def test_any_json_ends_in_a_clean_error(tmp_path_factory, document, data):
    path = write(tmp_path_factory.getbasetemp() / "fuzz-json.safetensors", document, data)
    try:
        header = read_header(path)
    except MoegeoError:
        return
    for info in header.tensors.values():
        assert header.data_start <= info.start <= info.end <= header.file_size


def test_elements():
    assert TensorInfo("F32", (3, 4), 0, 48).elements == 12
