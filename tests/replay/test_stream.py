"""Layers streamed from the files against the whole model, and what a stream may hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.errors import (
    BaselineError,
    IncompleteCheckpointError,
    ResourceError,
    ShapeError,
    UsageError,
)
from moegeo_cli.models.loading import load_model, read_ahead
from moegeo_cli.models.memory.streamed import PartSizes, plan_stream
from moegeo_cli.models.streaming.layer_stream import LayerStream
from moegeo_cli.models.streaming.streamed import streamed
from moegeo_cli.replay.batches import carries_state
from moegeo_cli.replay.plan import Plan, Replay
from moegeo_cli.replay.session import replay
from moegeo_cli.routers.finding import find_routers
from moegeo_cli.settings import parse_bytes
from tests.architectures.test_every_type import PAIRS, TOWERS, TYPES
from tests.architectures.zoo import save_tiny

CPU = torch.device("cpu")
# Fused and per-expert files, biases, layers without routers, routers of two kinds, experts
# that cannot be had one by one (jetmoe, llama4), layers that hand on two tensors (zaya).
CHOSEN = ("deepseek_v3", "gpt_oss", "llama4_text", "qwen2_moe", "zaya")
OTHERS = [t for t in (*TYPES, *TOWERS, *PAIRS) if t not in CHOSEN]
# Equal to rounding alone: gradients that add up in another order, operands that lie otherwise.
ROUNDED = (*PAIRS, "inkling_text", "inkling_mm_model")
KINDS = (("categorical", "token"), ("empirical", "position"), ("empirical", "sequence"))


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 60, n) for n in (5, 12, 12, 16, 3)]


def write_probe(folder: Path) -> Path:
    path = folder / "probe.jsonl"
    path.write_text("".join(f'{{"input_ids": {s.tolist()}}}\n' for s in sequences()))
    return path


def run(model: Any, path: Path, kind: Any = None) -> Replay:
    architecture = describe_architecture(read_config(path))
    ids = sequences()
    plan = Plan(
        fishers=KINDS,
        groups_S=np.arange(len(ids)) % 3,
        unselected=architecture.unselected_gradient,
        scoring=architecture.scoring or "",
        batch_size=2,
        mixed_lengths=not carries_state(model),
        splits_S=np.array([len(i) // 2 for i in ids]) if architecture.encoder_decoder else None,
    )
    return replay(model, find_routers(model), ids, [None] * len(ids), plan, kind=kind)


def open_stream(path: Path, chunk_bytes: int | None) -> LayerStream:
    stream = LayerStream(Checkpoint(path), CPU, torch.float32)
    stream.attach(Checkpoint(path))
    stream.open(chunk_bytes)
    return stream


def save(model_type: str, path: Path) -> None:
    save_tiny(model_type, path)
    if model_type == "zaya":  # transformers sets this value anew, whatever the file says
        file = path / "model.safetensors"
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.endswith("balancing_biases"):
                tensor[-1] = -1
        save_file(tensors, file, {"format": "pt"})


def assert_equal(model_type: str, one: Any, other: Any) -> None:
    if model_type in ROUNDED:
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6 * np.abs(one).max())
    else:
        assert np.array_equal(one, other)


def assert_streams_equal_whole(model_type: str, path: Path) -> None:
    """The same bits by the same kernel: experts whole, and one at a time."""
    save(model_type, path)
    whole = load_model(Checkpoint(path), CPU, torch.float32)
    for chunk_bytes in (None, 1):
        if chunk_bytes:
            whole.set_experts_implementation("eager")  # type: ignore[operator]
        expected = run(whole, path)
        stream = open_stream(path, chunk_bytes)
        found = run(stream.model, path, streamed(stream, 2000))  # a batch or two travel together
        assert_equal(model_type, expected.loss_S, found.loss_S)
        for one, other in zip(expected.traces, found.traces, strict=True):
            assert one.router.path == other.router.path
            assert np.array_equal(one.selected_TK, other.selected_TK)
            assert_equal(model_type, one.logits_TE, other.logits_TE)
            assert_equal(model_type, one.weights_TK, other.weights_TK)
            for key in KINDS:
                a, b = (trace.fishers[key].totals() for trace in (one, other))
                for x, y in zip(a, b, strict=True):
                    assert_equal(model_type, x, y)
        held = {n for n, p in stream.model.named_parameters() if p.device.type != "meta"}
        assert held <= stream.resident


@pytest.mark.parametrize("model_type", CHOSEN)
def test_a_stream_gives_the_bits_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    assert_streams_equal_whole(model_type, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OTHERS)
def test_every_other_type_streams_to_the_same_bits(model_type: str, tmp_path: Path) -> None:
    assert_streams_equal_whole(model_type, tmp_path)


@pytest.mark.parametrize("chunk_bytes", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_thread_that_reads_ahead_changes_nothing(chunk_bytes: int | None, tmp_path: Path) -> None:
    save("qwen2_moe", tmp_path)
    results = []
    for ahead in (False, True):
        stream = LayerStream(Checkpoint(tmp_path), CPU, torch.float32)
        stream.ahead = ahead
        stream.attach(Checkpoint(tmp_path))
        stream.open(chunk_bytes)
        results.append(run(stream.model, tmp_path, streamed(stream, 2000)))
        assert not stream.files._reading, "what was read ahead was used"
    for one, other in zip(results[0].traces, results[1].traces, strict=True):
        for key in KINDS:
            assert np.array_equal(one.fishers[key].totals()[0], other.fishers[key].totals()[0])


def test_experts_come_one_at_a_time(tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    stream = open_stream(tmp_path, 1)
    [chunks] = stream.chunks[0]
    saved = load_file(tmp_path / "model.safetensors")
    with stream.layer(0):
        for e in (3, 0, 7):
            down = chunks.expert("model.layers.0.mlp.experts.down_proj", e)
            assert torch.equal(
                down, saved[f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight"]
            )
            held = sum(t.numel() * t.element_size() for t in chunks._held.values())
            assert held == chunks.expert_bytes


def test_the_reports_of_both_ways_agree(tmp_path: Path) -> None:
    save("qwen3_moe", tmp_path)
    probe = write_probe(tmp_path)
    ways: list[dict[str, Any]] = [{}, {"stream": True}, {"memory": "64GB", "stream": True}]
    whole, small, large = (
        analyze(tmp_path, probe=probe, baseline="none", cache=False, **way) for way in ways
    )
    for other in (small, large):
        assert other.checkpoints[0].replay["notes"][0].startswith("layers streamed")
        pairs = zip(whole.checkpoints[0].layers, other.checkpoints[0].layers, strict=True)
        for one, two in pairs:
            for name, metric in one.metrics.items():
                if metric.value is not None:
                    assert two.metrics[name].value == pytest.approx(metric.value, rel=1e-5), name


@pytest.mark.parametrize(("lost", "said"), [
    ("experts.3.w1.weight", "experts"), ("q_proj.weight", "q_proj"), ("norm.weight", "norm"),
])  # fmt: skip
def test_a_missing_tensor_is_never_a_random_one(lost: str, said: str, tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in [n for n in tensors if n.endswith(lost)]:
        del tensors[name]
    save_file(tensors, file, {"format": "pt"})

    def go() -> None:
        stream = open_stream(tmp_path, 1)
        run(stream.model, tmp_path, streamed(stream, 2000))

    with pytest.raises((IncompleteCheckpointError, ShapeError), match=r"needs|shape|convert") as e:
        go()
    assert said in f"{e.value.message} {e.value.found}"


def test_a_file_that_is_cut_while_it_is_read_ends_the_analysis(tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    stream = open_stream(tmp_path, 1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        IncompleteCheckpointError,
        match=r"model\.safetensors ends before the tensor",
    ):
        run(stream.model, tmp_path, streamed(stream, 2000))


def test_memory_that_runs_out_in_a_layer_is_not_a_broken_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("mixtral", tmp_path)
    stream = open_stream(tmp_path, None)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("moegeo_cli.models.streaming.layer_files.convert_into", full)
    with pytest.raises(ResourceError, match="one sequence at a time"):
        run(stream.model, tmp_path, streamed(stream, 2000))


def test_files_larger_than_the_cache_are_not_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"0" * 1000)
    thread = read_ahead([file])
    assert thread is not None
    thread.join()
    monkeypatch.setattr("moegeo_cli.models.loading.free_bytes", lambda device: 1500)
    assert read_ahead([file]) is None


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    probe = write_probe(tmp_path)
    with pytest.raises(ResourceError, match="--memory is too low"):
        analyze(tmp_path, probe=probe, baseline="none", cache=False, memory="1MB")
    with pytest.raises(
        BaselineError, match="a fresh initialisation cannot be streamed: it has no files"
    ):
        analyze(tmp_path, probe=probe, baseline="init", cache=False, stream=True)
    with pytest.raises(
        UsageError,
        match="--unit loss_token cannot be streamed",
    ):
        analyze(tmp_path, unit="loss_token", stream=True)
    with pytest.raises(UsageError, match="not a size"):
        analyze(tmp_path, memory="much")


SIZES = PartSizes(
    resident=10**8, shared=10**8, layer=10**9, expert=10**8, boundary=10**5, sums=10**7,
    width=1024, inner=2048, top_k=2, vocabulary=1000, itemsize=2,
)  # fmt: skip


@pytest.mark.parametrize("memory", [10**9, 2 * 10**9, 4 * 10**9, 64 * 10**9])
def test_a_plan_stays_within_its_bound(memory: int) -> None:
    plan = plan_stream(SIZES, 50_000, 256, memory, 3 * 10**8, 10**11)
    assert plan.bound <= memory
    assert plan.positions >= 256
    assert plan.boundary_bytes >= SIZES.boundary * plan.positions
    assert (plan.chunk_bytes is None) == (memory == 64 * 10**9)


def test_the_least_plan_is_the_documented_sum() -> None:
    plan = plan_stream(SIZES, 1000, 256, None, 3 * 10**8, 10**11)
    assert plan.terms["layer"] == 2 * SIZES.expert  # the larger of a chunk and the shared part
    small = dataclasses.replace(SIZES, expert=10**6)
    assert plan_stream(small, 1000, 256, None, 0, 10**11).terms["layer"] == 2 * 10**8
    assert plan.terms["boundaries"] == SIZES.boundary * 1000


@pytest.mark.parametrize(("text", "size"), [
    ("8GB", 2**33), ("512MiB", 2**29), ("1.5G", 3 * 2**29), ("2000000", 2 * 10**6), (None, None),
    (7 * 10**6, 7 * 10**6),
])  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: Any, size: int | None) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", 8, " 512 "])
def test_a_forgotten_unit_is_asked_about(text: Any) -> None:
    with pytest.raises(UsageError, match=f"did you mean {int(text)}GB"):
        parse_bytes(text)
