"""Metadata of torch.distributed.checkpoint that was tampered with, damaged, or made to explode."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldProperties
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo

from moegeo_cli.checkpoints import unpickling
from moegeo_cli.checkpoints.metadata import read_metadata
from moegeo_cli.checkpoints.metadata_names import ALLOWED
from moegeo_cli.checkpoints.unpickling import unpickle
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, UnsafeFileError
from tests.sharding import save_state

HERE = Path("x/.metadata")


def honest(**changes: Any) -> dcp.Metadata:
    """One tensor of two pieces, as torch describes it."""
    chunks = [
        dcp.ChunkStorageMetadata(torch.Size((start, 0)), torch.Size((2, 3))) for start in (0, 2)
    ]
    properties = dcp.TensorProperties(dtype=torch.bfloat16)
    document: dict[str, Any] = {
        "state_dict_metadata": {
            "w": dcp.TensorStorageMetadata(properties, torch.Size((4, 3)), chunks),
            "step": dcp.BytesStorageMetadata(),
        },
        "planner_data": {"w": ("model", "w"), "step": ("step",)},
        "storage_data": {
            dcp.MetadataIndex("w", (0, 0), 0): _StorageInfo("__0_0.distcp", 0, 100),
            dcp.MetadataIndex("w", (2, 0), 1): _StorageInfo("__1_0.distcp", 7, 100),
            dcp.MetadataIndex("step"): _StorageInfo("__0_0.distcp", 100, 50),
        },
        "storage_meta": dcp.StorageMeta(Path("/somewhere"), "a", "b", ["c"]),
        "version": "1.0.0",
    }
    return dcp.Metadata(**{**document, **changes})


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_the_file_that_the_fuzzer_damages_is_such_a_one(tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "faults" / "two-pieces.metadata"
    fresh = write(tmp_path / ".metadata", pickle.dumps(honest()))
    assert read_metadata(stored) == read_metadata(fresh)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    state = read_metadata(write(tmp_path / ".metadata", pickle.dumps(honest(), protocol)))
    assert state.objects == ("step",)
    assert state.tensors["w"].dtype == "BF16"
    assert state.tensors["w"].shape == (4, 3)
    assert [(p.offsets, p.file, p.start) for p in state.tensors["w"].pieces] == [
        ((0, 0), "__0_0.distcp", 0),
        ((2, 0), "__1_0.distcp", 7),
    ]
    assert state.spans["__0_0.distcp"] == ((0, 100), (100, 50))
    assert state.paths["w"] == ("model", "w")


def test_the_classes_of_older_versions_are_read(tmp_path: Path) -> None:
    old = honest()
    old.state_dict_metadata["w"].properties = OldProperties(dtype=torch.float16)
    assert read_metadata(write(tmp_path / ".metadata", pickle.dumps(old))).tensors["w"].dtype == (
        "F16"
    )


def test_what_torch_reads_is_what_is_read_here(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 4).parameters())
    tensors = {"a": torch.rand(3, 4).half(), "b": torch.arange(5), "c": torch.tensor(True)}
    save_state({"model": tensors, "optimizer": optimizer.state_dict(), "n": 3}, tmp_path)
    theirs, ours = FileSystemReader(tmp_path).read_metadata(), read_metadata(tmp_path / ".metadata")
    described = theirs.state_dict_metadata
    assert set(ours.tensors) | set(ours.objects) == set(described)
    for name, tensor in ours.tensors.items():
        assert tensor.shape == tuple(described[name].size)
        assert len(tensor.pieces) == len(described[name].chunks)
    assert ours.paths == theirs.planner_data
    ends = [info.offset + info.length for info in theirs.storage_data.values()]
    assert max(ends) == (tmp_path / "__0_0.distcp").stat().st_size


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path, call: Callable[..., Any] = os.mkdir) -> None:
        self.path, self.call = str(path), call

    def __reduce__(self) -> Any:
        return (self.call, (self.path,))


PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "tensor": lambda payload: {"state_dict_metadata": {"w": payload}},
    "planner": lambda payload: {"planner_data": payload},
    "key": lambda payload: {"planner_data": {"w": ("model", payload)}},
    "place": lambda payload: {"storage_data": {"w": payload}},
    "meta": lambda payload: {"storage_meta": payload},
    "version": lambda payload: {"version": payload},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", PLACES)
def test_a_tampered_file_is_refused_and_its_payload_does_not_run(
    tmp_path: Path, place: str, protocol: int
) -> None:
    mark = tmp_path / "ran"
    raw = pickle.dumps(honest(**PLACES[place](Payload(mark))), protocol)
    with pytest.raises(UnsafeFileError, match="refused") as caught:
        read_metadata(write(tmp_path / ".metadata", raw))
    assert "posix.mkdir" in (caught.value.found or "") or "nt.mkdir" in (caught.value.found or "")
    assert not mark.exists()
    pickle.loads(raw)  # the same file does run its payload where it is trusted
    assert mark.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


META = "torch.distributed.checkpoint.metadata"
SIZE, METADATA = name("torch", "Size"), name(META, "Metadata")
TRICKS = {
    "a class called": METADATA + text("x") + b"\x85R",
    "a class called with nothing": METADATA + b")R",
    "a class made with arguments": METADATA + text("x") + b"\x85\x81",
    "a function made an instance of": SIZE + b")\x81",
    "a size of words": SIZE + text("x") + b"\x85R",
    "a size below zero": SIZE + b"J\xff\xff\xff\xff\x85\x85R",
    "a size of sizes": SIZE + b"()t\x85R",
    "the real getattr": name("builtins", "getattr") + METADATA + text("__init__") + b"\x86R",
    "getattr of three": name("builtins", "getattr") + METADATA + b"NN\x87R",
    "a dotted name": name("torch", "Size.__class__"),
    "a dotted module": name(META, "Metadata.__init__.__globals__"),
    "a name of no text": b"NN\x93",
    "eval": name("builtins", "eval") + text("1") + b"\x85R",
    "a line's name": b"cposix\nsystem\n" + text("true") + b"\x85R",
    "attributes of a class": METADATA + b"N}" + text("__setstate__") + text("x") + b"s\x86b",
    "attributes of a size": SIZE + b"}" + text("__class__") + text("x") + b"sb",
    "attributes of a list": b"]}b",
    "attributes twice": METADATA + b")\x81}b}b",
    "items of a record": METADATA + b")\x81" + text("x") + text("y") + b"s",
    "more items of a tuple": b")]a",
    "an instance by line": b"(iposix\nsystem\n",
    "an object": b"(" + METADATA + b"o",
    "an instance with keywords": METADATA + b")}\x92",
    "a persistent object": text("x") + b"Q",
    "an extension": b"\x82\x01",
    "a string called": text("x") + b")R",
    "a number called": b"K\x01)R",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_gets_anything_called(trick: str) -> None:
    with pytest.raises(
        UnsafeFileError,
        match=r"\.metadata holds more than a description of tensors, and is refused",
    ):
        unpickle(b"\x80\x04" + TRICKS[trick] + b".", HERE, ALLOWED)


def test_a_state_that_python_would_act_on_is_only_kept() -> None:
    state = b"}" + text("__class__") + text("x") + b"s"
    record = unpickle(b"\x80\x04" + METADATA + b")\x81" + state + b"b.", HERE, ALLOWED)
    assert type(record) is unpickling.Record
    assert record.state == {"__class__": "x"}


def test_a_member_of_an_enumeration_by_name_is_read() -> None:
    raw = name("builtins", "getattr") + name(META, "_MEM_FORMAT_ENCODING")
    raw += text("TORCH_CONTIGUOUS_FORMAT") + b"\x86R."
    assert unpickle(b"\x80\x04" + raw, HERE, ALLOWED) is None


LIES = {
    "a text of 4 GB": b"X\xff\xff\xff\xff",
    "a text beyond all": b"\x8d" + b"\xff" * 8,
    "a frame beyond all": b"\x95" + b"\xff" * 8 + b"N.",
    "a place in the memo that was never filled": b"j\xff\xff\xff\xff.",
    "a far place in the memo": b"Nr\xff\xff\xff\xff" * 3 + b".",
    "nothing": b"",
    "only an end": b".",
    "two values": b"NN.",
    "an open mark": b"(N.",
    "more behind the end": b"N.N",
    "a mark that is not there": b"u.",
    "an odd number of items": b"}(Nu.",
    "a tuple below a mark": b"N(\x85.",
    "a key that is a list": b"}]Ns.",
    "broken text": b"X\x01\x00\x00\x00\xff.",
    "a later protocol": b"\x80\x06N.",
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_and_damage_are_clean_errors(tmp_path: Path, lie: str) -> None:
    with pytest.raises((IncompleteCheckpointError, UnsafeFileError), match=r"\.metadata"):
        read_metadata(write(tmp_path / ".metadata", LIES[lie]))


def nested(depth: int) -> bytes:
    """A tuple of itself twice, over and over: small to build, and too large to look through."""
    return b"N" + b"".join(b"q\x01h\x01\x86" for _ in range(depth))


@pytest.mark.parametrize(
    "raw",
    [
        b"}" + nested(200) + b"Ns.",
        name("builtins", "getattr") + nested(200) + text("x") + b"\x86R.",
        SIZE + nested(200) + b"\x85R.",
        METADATA + nested(200) + b"\x81.",
        b"]" * 90_000 + b"a" * 89_999 + b".",
        METADATA + b")\x81" + b"]" * 90_000 + b"a" * 89_999 + b"b.",
    ],
)
def test_nesting_costs_neither_time_nor_the_stack(tmp_path: Path, raw: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(MoegeoError, match=r"\.metadata"):
        read_metadata(write(tmp_path / ".metadata", raw))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("flood", [b"]" * 400_000, b"(" * 2_000, b"](" + b"}" * 400_000 + b"e."])
def test_a_flood_of_values_ends_early(flood: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(MoegeoError, match=r"\.metadata is truncated or damaged"):
        unpickle(flood, HERE, ALLOWED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_more_instructions_than_any_honest_file_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickling, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(IncompleteCheckpointError, match="truncated or damaged") as caught:
        unpickle(b"]" + b"Na" * 1000 + b".", HERE, ALLOWED)
    assert "1,000 instructions" in (caught.value.found or "")


def test_cut_anywhere_it_is_a_clean_error() -> None:
    raw = pickle.dumps(honest())
    for end in range(len(raw)):
        with pytest.raises(IncompleteCheckpointError, match=r"\.metadata is truncated or damaged"):
            unpickle(raw[:end], HERE, ALLOWED)


def test_all_that_torch_writes_is_known(tmp_path: Path) -> None:
    save_state({"model": {"a": torch.ones(2)}, "b": [1, {"c": 2}]}, tmp_path)
    raw = (tmp_path / ".metadata").read_bytes()
    known = set(unpickling._INSTRUCTIONS) | {ord(".")}
    assert {ord(code.code) for code, _, _ in pickletools.genops(raw)} <= known
