"""Every token meets every router exactly once, or the router is refused by name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from moegeo_cli import analyze, capture_routers, experts, routing
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.loading import load_model
from moegeo_cli.models.streaming.layer_stream import LayerStream
from moegeo_cli.replay.plan import Plan
from moegeo_cli.replay.session import replay
from moegeo_cli.routers.finding import find_routers
from tests.own_models import looped, models
from tests.tiny_models import save_tiny

CPU = torch.device("cpu")
AGAIN = r"router blocks\.0\.gate is called more than once"


def save(name: str, folder: Path) -> dict[str, Any]:
    """A checkpoint of a model here, and the options that open it."""
    model = models.spread(getattr(looped, name)(None), 0)
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "weights.pt")
    return {"model": f"tests.own_models.looped:{name}", "router": "blocks.*.gate", "top_k": 2,
            "scoring": "softmax", "cache": False}  # fmt: skip


def measure(way: str, run: Path, probe: Path, options: dict[str, Any]) -> object:
    """One command, or one kind of Fisher."""
    if way in ("experts", "routing"):
        return {"experts": experts, "routing": routing}[way](run, probe=probe, **options)
    return analyze(run, probe=probe, fisher=way, baseline="none", **options)


def write_probe(path: Path, lengths: tuple[int, ...] = (7, 12, 12, 5, 9, 12)) -> Path:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, models.VOCABULARY, n).tolist() for n in lengths]
    path.write_text("".join(json.dumps({"input_ids": i}) + "\n" for i in rows))
    return path


@pytest.mark.parametrize("name", ["twice", "shared", "swallowing"])
@pytest.mark.parametrize("way", ["empirical", "categorical", "experts", "routing"])
def test_a_router_that_is_called_twice_is_refused_by_name(
    name: str, way: str, tmp_path: Path
) -> None:
    options = save(name, tmp_path / "run")
    probe = write_probe(tmp_path / "probe.jsonl")
    with pytest.raises(UnsupportedArchitectureError, match=AGAIN):
        measure(way, tmp_path / "run", probe, options)


@pytest.mark.parametrize("fisher", ["empirical", "categorical"])
def test_depth_that_depends_on_the_tokens_is_met_where_it_begins(
    fisher: str, tmp_path: Path
) -> None:
    options = save("deeper", tmp_path / "run")
    probe = write_probe(tmp_path / "probe.jsonl", (70, 80, 120))
    with pytest.raises(UnsupportedArchitectureError, match=AGAIN):
        analyze(tmp_path / "run", probe=probe, fisher=fisher, baseline="none", **options)


def test_a_router_that_is_not_called_for_some_tokens_is_not_measured(tmp_path: Path) -> None:
    options = save("skipping", tmp_path / "run")
    probe = write_probe(tmp_path / "probe.jsonl")
    run = analyze(tmp_path / "run", probe=probe, baseline="none", **options)
    coverage = run.checkpoints[-1].coverage
    assert (coverage.routers_found, coverage.routers_measured) == (2, 1)
    [(path, reason)] = coverage.not_measured.items()
    assert path == "blocks.1.gate"
    assert reason == "the router was not called for 36 of 57 tokens"
    assert run.status == "partial"


@pytest.mark.parametrize("name", ["noisy", "drawing"])
@pytest.mark.parametrize("way", ["empirical", "categorical", "experts", "routing"])
def test_routing_that_is_random_is_said_to_be(name: str, way: str, tmp_path: Path) -> None:
    options = save(name, tmp_path / "run")
    probe = write_probe(tmp_path / "probe.jsonl")
    with pytest.raises(UnsupportedArchitectureError, match="random in evaluation mode"):
        measure(way, tmp_path / "run", probe, options)


def plan(ids: list[np.ndarray], fisher: str) -> Plan:
    kinds = {"empirical": ("empirical", "position"), "categorical": ("categorical", "token")}
    return Plan((kinds[fisher],), np.zeros(len(ids), dtype=np.int64), scoring="softmax")


@pytest.mark.parametrize("fisher", ["empirical", "categorical"])
def test_a_block_of_transformers_that_two_layers_share_is_refused(
    fisher: str, tmp_path: Path
) -> None:
    model: Any = load_model(Checkpoint(save_tiny("mixtral", tmp_path / "run")), CPU, torch.float32)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    ids = [np.arange(9), np.arange(12)]
    with pytest.raises(UnsupportedArchitectureError, match=r"router .* is called more than once"):
        replay(model, find_routers(model), ids, [None, None], plan(ids, fisher))


def test_a_stream_runs_each_layer_once(tmp_path: Path) -> None:
    path = save_tiny("mixtral", tmp_path / "run")
    stream = LayerStream(Checkpoint(path), CPU, torch.float32)
    layer = stream.layers[0].forward
    count = len(stream.layers)
    stream.run(count, lambda: [own.forward() for own in stream.layers], range(count))
    with pytest.raises(UnsupportedArchitectureError, match="more than once"):
        stream.run(count, lambda: [layer(), layer()], range(count))


@pytest.mark.parametrize("name", ["twice", "shared", "swallowing"])
@pytest.mark.parametrize("training", [False, True])
def test_a_router_that_is_called_twice_ends_a_capture_by_name(
    name: str, training: bool, tmp_path: Path
) -> None:
    """One row would stand for two choices; what the model gives stays the same."""
    model = models.spread(getattr(looped, name)(None), 0).train(training)
    ids = torch.arange(24).reshape(2, 12) % models.VOCABULARY
    alone = model(ids)
    file = tmp_path / "c.safetensors"
    with (
        pytest.warns(RuntimeWarning, match=AGAIN.removeprefix("router ")),
        capture_routers(model, file, router="blocks.*.gate") as found,
    ):
        assert torch.equal(model(ids), alone)
    assert "more than once" in str(found.problem)
    assert not file.exists()


def test_a_capture_keeps_the_passes_before_the_second_call(tmp_path: Path) -> None:
    model = models.spread(looped.deeper(None), 0)
    short, long = torch.arange(20)[None], torch.arange(120)[None] % models.VOCABULARY
    file = tmp_path / "c.safetensors"
    with capture_routers(model, file, router="blocks.*.gate") as found:
        model(short % models.VOCABULARY)
        with pytest.warns(RuntimeWarning, match="20 tokens captured before are kept"):
            model(long)
    assert found.tokens == 20
    assert len(load_file(file)["sequence"]) == 20


def test_a_capture_of_recomputed_blocks_counts_each_call_once(tmp_path: Path) -> None:
    """Activation checkpointing calls routers again, behind the model's own forward pass."""
    model = models.spread(models.softmax(None), 0)
    blocks = [block.forward for block in model.blocks]
    for block, forward in zip(model.blocks, blocks, strict=True):
        block.forward = partial(checkpoint, forward, use_reentrant=False)
    ids = torch.arange(24).reshape(2, 12) % models.VOCABULARY
    file = tmp_path / "c.safetensors"
    with capture_routers(model, file, router="blocks.*.gate") as found:
        model(ids)[0].sum().backward()
    assert (found.problem, found.tokens) == (None, 24)
