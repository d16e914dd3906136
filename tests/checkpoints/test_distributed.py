"""torch.distributed checkpoints: what is read, what is missed, and what is refused."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.distributed import DistributedWeights
from moegeo_cli.checkpoints.metadata import read_metadata, tiles
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    NoCheckpointError,
    PathError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from tests.sharding import save_fsdp, save_state
from tests.tiny_models import build_tiny

GATE = "model.layers.1.mlp.gate.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints as the Trainer with FSDP writes them, config.json above them."""
    run = tmp_path_factory.mktemp("saved") / "run"
    for step in (5, 10):
        save_fsdp(build_tiny("mixtral", seed=step), run / f"checkpoint-{step}")
    build_tiny("mixtral").config.save_pretrained(run)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def part(run: Path) -> Path:
    """The folder of the newest checkpoint's `.metadata`."""
    return run / "checkpoint-10" / "pytorch_model_fsdp_0"


def change(part: Path, edit: Callable[[dcp.Metadata], Any]) -> None:
    """Write a `.metadata` that says something else."""
    metadata = pickle.loads((part / ".metadata").read_bytes())
    edit(metadata)
    (part / ".metadata").write_bytes(pickle.dumps(metadata))


def test_values_are_those_that_were_saved(saved: Path) -> None:
    index = open_weights(saved / "checkpoint-5")
    state = build_tiny("mixtral", seed=5).state_dict()
    assert index.layout == "torch-distributed"
    assert index.names() == tuple(sorted(state))
    assert index.parameters == sum(tensor.numel() for tensor in state.values())
    for name, tensor in state.items():
        assert index.shape(name) == tuple(tensor.shape)
        assert index.dtype(name) == "F32"
        np.testing.assert_array_equal(index.read(name), tensor.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_dtypes_and_odd_shapes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {
        "scalar": torch.tensor(3, dtype=dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
        "turned": torch.arange(24).to(dtype).reshape(4, 6).T,
        "slice": torch.arange(24).to(dtype)[5:9],
    }
    index = open_weights(save_state({"model": state}, tmp_path))
    for name, tensor in state.items():
        assert index.shape(name) == tuple(tensor.shape)
        assert torch.equal(index.tensor(name), tensor)  # type: ignore[attr-defined]
        expected = tensor.float() if dtype in (torch.bfloat16, torch.float16) else tensor
        np.testing.assert_array_equal(index.read(name), expected.numpy())


def test_a_dtype_without_numbers_is_told_and_not_read(tmp_path: Path) -> None:
    state = {"q": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    index = open_weights(save_state({"model": state}, tmp_path))
    assert index.dtype("q") == "F8_E4M3"
    with pytest.raises(UnsupportedLayoutError, match="F8_E4M3"):
        index.read("q")


def test_inspecting_and_fingerprinting_import_no_torch(saved: Path) -> None:
    code = (
        "import sys; from moegeo_cli.commands.inspect.describe import inspect_checkpoint;"
        "from moegeo_cli.checkpoints.discover import open_run;"
        f"found = inspect_checkpoint({str(saved)!r});"
        f"open_run({str(saved)!r}).newest.fingerprint();"
        "assert found.routers_found == found.routers_expected == 3, found;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_of_them_is_discovered_with_its_config_above(run: Path) -> None:
    found = open_run(run)
    assert [(c.relative, c.layout) for c in found.checkpoints] == [
        ("checkpoint-5", "torch-distributed"),
        ("checkpoint-10", "torch-distributed"),
    ]
    assert found.newest.config_folder == run
    single = open_run(run / "checkpoint-10")
    assert (single.is_single, single.newest.step) == (True, 10)
    inner = open_run(run / "checkpoint-10" / "pytorch_model_fsdp_0")
    assert inner.is_single
    described = inspect_checkpoint(run)
    assert described.layout == "torch-distributed"
    assert described.config == "../config.json"
    assert described.problem is None


def test_torchtitan_saves_into_the_step_itself(tmp_path: Path) -> None:
    model = build_tiny("mixtral")
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(
        {**model.state_dict(), "optimizer": optimizer.state_dict(), "train_state": {"step": 7}},
        tmp_path / "run" / "step-7",
    )
    model.config.save_pretrained(tmp_path / "base")
    with pytest.raises(IncompleteCheckpointError, match="none of the 1") as caught:
        open_run(tmp_path / "run")
    assert "--config" in caught.value.hint
    for config in (tmp_path / "base", tmp_path / "base" / "config.json"):
        found = open_run(tmp_path / "run", config)
        assert found.newest.step == 7
        assert found.newest.config_folder == tmp_path / "base"
    described = inspect_checkpoint(tmp_path / "run", config=tmp_path / "base")
    assert described.routers_found == 3
    assert set(described.left_out) == {"optimizer", "train_state"}


def test_a_config_that_is_not_there(run: Path) -> None:
    with pytest.raises(PathError, match="--config"):
        open_run(run, run / "nowhere")


def test_its_own_config_wins_over_the_one_that_is_given(run: Path, tmp_path: Path) -> None:
    build_tiny("olmoe").config.save_pretrained(tmp_path / "other")
    shutil.copy(run / "config.json", run / "checkpoint-5")
    assert open_run(run / "checkpoint-5", tmp_path / "other").newest.config_folder == (
        run / "checkpoint-5"
    )
    assert open_run(run / "checkpoint-10", tmp_path / "other").newest.config_folder == (
        tmp_path / "other"
    )


def test_one_without_metadata_is_still_being_written(run: Path, part: Path) -> None:
    (part / ".metadata").rename(part / ".metadata.tmp")
    found = open_run(run)
    assert [c.step for c in found.checkpoints] == [5]
    assert "writes last" in found.skipped[0].reason
    with pytest.raises(IncompleteCheckpointError, match="writes last"):
        open_run(run / "checkpoint-10")
    shutil.rmtree(part)
    part.mkdir()
    assert len(open_run(run).skipped) == 1


def test_the_trainer_state_marks_completion(run: Path) -> None:
    (run / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    assert [c.step for c in open_run(run).checkpoints] == [5]


def test_a_missing_file_is_named(part: Path) -> None:
    (part / "__0_0.distcp").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"__0_0\.distcp"):
        open_weights(part)


@pytest.mark.parametrize("change_by", [-1, 1, -1000])
def test_a_file_of_another_size_is_damaged(part: Path, change_by: int) -> None:
    file = part / "__0_0.distcp"
    raw = file.read_bytes()
    file.write_bytes(raw[:change_by] if change_by < 0 else raw + b"x")
    with pytest.raises(IncompleteCheckpointError, match=r"__0_0\.distcp"):
        open_weights(part)


def test_damage_within_a_piece_is_an_error_where_it_is_read(part: Path) -> None:
    index = DistributedWeights(part)
    [piece] = index._state.tensors[f"model.{GATE}"].pieces
    file = part / piece.file
    raw = bytearray(file.read_bytes())
    for start, length in ((piece.start, 4), (piece.start + piece.length - 22, 22)):
        broken = raw[:start] + b"\0" * length + raw[start + length :]
        file.write_bytes(broken)
        with pytest.raises(IncompleteCheckpointError, match=r"__0_0\.distcp is truncated or"):
            index.read(GATE)


@pytest.mark.parametrize("name", ["../x.distcp", "/etc/passwd", "a/../../x", "..\\x", "C:x", ""])
def test_a_file_outside_the_folder_is_refused(part: Path, name: str) -> None:
    def edit(metadata: dcp.Metadata) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    change(part, edit)
    with pytest.raises(UnsafeFileError, match="outside"):
        open_weights(part)


def _chunks(metadata: dcp.Metadata) -> list[Any]:
    return metadata.state_dict_metadata[f"model.{GATE}"].chunks


def _wrong_size(metadata: dcp.Metadata, size: tuple[int, ...]) -> None:
    metadata.state_dict_metadata[f"model.{GATE}"].size = torch.Size(size)


def _share_bytes(metadata: dcp.Metadata) -> None:
    first, second, *_ = metadata.storage_data.values()
    second.offset = first.offset + 1


def _forget(metadata: dcp.Metadata) -> None:
    metadata.storage_data = {
        key: info for key, info in metadata.storage_data.items() if GATE not in key.fqn
    }


def _negative(metadata: dcp.Metadata) -> None:
    next(iter(metadata.storage_data.values())).offset = -1


FAULTS: dict[str, Callable[[dcp.Metadata], Any]] = {
    "no piece": lambda m: _chunks(m).clear(),
    "a piece twice": lambda m: _chunks(m).append(_chunks(m)[0]),
    "too small a piece": lambda m: setattr(_chunks(m)[0], "sizes", torch.Size((5, 24))),
    "a piece beyond": lambda m: setattr(_chunks(m)[0], "sizes", torch.Size((7, 24))),
    "a piece of fewer dimensions": lambda m: setattr(_chunks(m)[0], "sizes", torch.Size((6,))),
    "a larger tensor": lambda m: _wrong_size(m, (8, 24)),
    "a tensor larger than memory": lambda m: _wrong_size(m, (2**40, 24)),
    "another shape": lambda m: _wrong_size(m, (6, 4, 6)),
    "pieces in the same bytes": _share_bytes,
    "no place": _forget,
    "a place before the file": _negative,
    "no tensors": lambda m: setattr(m, "state_dict_metadata", None),
    "no places": lambda m: setattr(m, "storage_data", None),
    "pieces that are none": lambda m: _chunks(m).append(3),
    "a planner that is none": lambda m: setattr(m, "planner_data", [3]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_metadata_that_contradicts_itself(part: Path, fault: str) -> None:
    change(part, FAULTS[fault])
    with pytest.raises(IncompleteCheckpointError, match=r"\.metadata is truncated or damaged"):
        open_weights(part)


def test_a_piece_that_lies_about_its_size_cannot_allocate(tmp_path: Path) -> None:
    save_state({"model": {"a": torch.ones(2, 3)}}, tmp_path)

    def edit(metadata: dcp.Metadata) -> None:
        tensor = metadata.state_dict_metadata["model.a"]
        tensor.size = tensor.chunks[0].sizes = torch.Size((2**30, 2**30))

    change(tmp_path, edit)
    with pytest.raises(IncompleteCheckpointError, match="damaged") as caught:
        open_weights(tmp_path)
    assert "bytes" in caught.value.found


def test_a_piece_of_another_shape_or_dtype_than_described(tmp_path: Path) -> None:
    save_state({"model": {"a": torch.ones(2, 3), "b": torch.ones(3, 2)}}, tmp_path)

    def swap(metadata: dcp.Metadata) -> None:
        a, b = (metadata.storage_data[dcp.MetadataIndex(f"model.{n}", (0, 0))] for n in "ab")
        a.offset, b.offset = b.offset, a.offset

    change(tmp_path, swap)
    with pytest.raises(IncompleteCheckpointError, match="damaged") as caught:
        open_weights(tmp_path).read("a")
    assert "F32 [3, 2]" in caught.value.found


def replace_piece(folder: Path, archive: bytes) -> None:
    """Put another archive where the only tensor's piece was."""
    (folder / "__0_0.distcp").write_bytes(archive)

    def edit(metadata: dcp.Metadata) -> None:
        metadata.storage_data = {
            key: _StorageInfo("__0_0.distcp", 0, len(archive)) for key in metadata.storage_data
        }

    change(folder, edit)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_a_payload_in_a_piece_does_not_run(tmp_path: Path) -> None:
    folder, mark = save_state({"model": {"a": torch.ones(2)}}, tmp_path / "c"), tmp_path / "ran"
    buffer = BytesIO()
    torch.save(Payload(mark), buffer)
    replace_piece(folder, buffer.getvalue())
    with pytest.raises(UnsafeFileError, match="code"):
        open_weights(folder).read("a")
    assert not mark.exists()


def test_pieces_that_are_no_plain_tensors(tmp_path: Path) -> None:
    values: tuple[Any, ...] = (
        {"a": torch.ones(2)}, torch.ones(2).to_sparse(), torch.ones(2, device="meta"), 3.0,
    )  # fmt: skip
    for number, value in enumerate(values):
        folder = save_state({"model": {"a": torch.ones(2)}}, tmp_path / str(number))
        buffer = BytesIO()
        torch.save(value, buffer)
        replace_piece(folder, buffer.getvalue())
        with pytest.raises(
            IncompleteCheckpointError, match=r"__0_0\.distcp is truncated or damaged"
        ):
            open_weights(folder).read("a")


def test_a_compressed_piece_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    folder = save_state({"model": {"a": torch.ones(2)}}, tmp_path)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10_000_000)
    replace_piece(folder, buffer.getvalue())
    with pytest.raises(IncompleteCheckpointError, match="damaged") as caught:
        open_weights(folder).read("a")
    assert "compressed" in caught.value.found


def test_compressed_by_an_extension_is_refused(part: Path) -> None:
    def edit(metadata: dcp.Metadata) -> None:
        next(iter(metadata.storage_data.values())).transform_descriptors = ["stream.zstd"]

    change(part, edit)
    with pytest.raises(UnsupportedLayoutError, match="compressed"):
        open_weights(part)


def test_safetensors_that_torch_distributed_writes_are_read(run: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    model = build_tiny("mixtral")
    for name, options in {"plain": {}, "whole": {"enable_consolidation": True}}.items():
        folder = tmp_path / name
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=bool(options), **options)
        save_state(model.state_dict(), folder, storage_writer=writer)
        found = open_run(folder, run)
        assert (found.newest.layout, found.newest.config_folder) == ("safetensors-sharded", run)
        index = open_weights(folder)
        np.testing.assert_array_equal(index.read(GATE), model.state_dict()[GATE].numpy())


def test_megatrons_own_is_still_refused_by_name(part: Path) -> None:
    (part / "metadata.json").write_text("{}")
    with pytest.raises(UnsupportedLayoutError, match="Megatron"):
        open_run(part)


# -- which tensors are the model's


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{name}": torch.ones(2, 2) for name in ("model.layers.0.x.weight", "lm_head.w")
    }


MOMENTS = {"state": {"model.layers.0.x.weight": {"exp_avg": torch.ones(2)}}, "param_groups": [1]}
STATES: dict[str, dict[str, Any]] = {
    "accelerate": {"model": weights()},
    "with an optimizer": {"model": weights(), "optimizer": MOMENTS, "epoch": 3},
    "deeper": {"app": {"model": weights(), "optim": MOMENTS}},
    "flat": weights(),
    "flat beside an optimizer": {**weights(), "optimizer": MOMENTS, "lr_scheduler": {"a": 1}},
    "compiled": {"model": weights("_orig_mod.")},
    "data parallel": {"state_dict": weights("module.")},
    "both": {"model": weights("module._orig_mod.")},
    "nested modules": {"model": {"model": {"layers": {"0": {"x": {"weight": torch.ones(2, 2)}}}},
                                 "lm_head": {"w": torch.ones(2, 2)}}},
    "beside a counter": {"model": weights(), "rng": torch.ones(3)},
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_the_models_tensors_are_found_by_where_they_were_saved(tmp_path: Path, case: str) -> None:
    index = open_weights(save_state(STATES[case], tmp_path))
    assert index.names() == ("lm_head.w", "model.layers.0.x.weight")
    left = set(STATES[case]) - set(weights()) - {"model", "state_dict"}
    assert set(index.left_out) == ({"app"} if case == "deeper" else left)


def test_without_the_planners_notes_names_stay_as_they_are(tmp_path: Path) -> None:
    save_state({**weights(), "optim.state.a": torch.ones(2)}, tmp_path)
    change(tmp_path, lambda metadata: setattr(metadata, "planner_data", None))
    index = open_weights(tmp_path)
    assert index.names() == ("lm_head.w", "model.layers.0.x.weight")
    assert index.left_out == {"optim": 1}


def test_an_optimizer_alone_is_no_model(tmp_path: Path) -> None:
    save_state({"optimizer": MOMENTS}, tmp_path)
    with pytest.raises(NoCheckpointError, match="no model") as caught:
        open_weights(tmp_path)
    assert "optimizer" in caught.value.found


def test_two_models_are_refused(tmp_path: Path) -> None:
    save_state({"actor": {"model": weights()}, "critic": {"model": weights()}}, tmp_path)
    with pytest.raises(UnsupportedLayoutError, match="2 models") as caught:
        open_weights(tmp_path)
    assert "actor.model" in caught.value.found


# -- tiling


def cut(shape: tuple[int, ...], data: Any) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split a box at random places, again and again."""
    boxes = [((0,) * len(shape), shape)]
    for _ in range(data.draw(st.integers(0, 6))):
        offsets, sizes = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        at = data.draw(st.integers(0, sizes[axis]))
        low = (*sizes[:axis], at, *sizes[axis + 1 :])
        high = (*sizes[:axis], sizes[axis] - at, *sizes[axis + 1 :])
        moved = (*offsets[:axis], offsets[axis] + at, *offsets[axis + 1 :])
        boxes += [(offsets, low), (moved, high)]
    yield from boxes


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), data=st.data())
def test_tiling_agrees_with_counting_every_element(shape: tuple[int, ...], data: Any) -> None:
    boxes = list(cut(shape, data))
    if data.draw(st.booleans()) and boxes:  # and now spoil it, perhaps
        place = data.draw(st.integers(0, len(boxes) - 1))
        offsets, sizes = boxes[place]
        shift = data.draw(st.tuples(*[st.integers(-1, 1)] * len(shape)))
        grow = data.draw(st.tuples(*[st.integers(-1, 1)] * len(shape)))
        moved = tuple(max(0, o + d) for o, d in zip(offsets, shift, strict=True))
        boxes[place] = (moved, tuple(max(0, s + d) for s, d in zip(sizes, grow, strict=True)))
    count = np.zeros([extent + 8 for extent in shape], dtype=int)
    for offsets, sizes in boxes:
        count[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
    whole = np.zeros_like(count)
    whole[tuple(slice(0, extent) for extent in shape)] = 1
    assert tiles(shape, boxes) == bool((count == whole).all())


# -- fingerprint


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_the_fingerprint_covers_every_file(run: Path, part: Path, mode: str) -> None:
    def now() -> str:
        return open_run(run / "checkpoint-10").newest.fingerprint(mode)

    prints = {now()}
    assert prints == {now()}
    change(part, lambda metadata: setattr(metadata.storage_meta, "save_id", "another"))
    prints.add(now())
    [piece] = read_metadata(part / ".metadata").tensors[f"model.{GATE}"].pieces
    raw = bytearray((part / piece.file).read_bytes())
    raw[piece.start + piece.length // 2] ^= 1
    (part / piece.file).write_bytes(raw)
    prints.add(now())
    (run / "config.json").write_text((run / "config.json").read_text() + " ")
    prints.add(now())
    assert len(prints) == 4


def test_routers_are_found_by_name(saved: Path) -> None:
    routers = find_router_tensors(open_weights(saved / "checkpoint-5"))
    assert [router.weight for router in routers] == [
        f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)
    ]
