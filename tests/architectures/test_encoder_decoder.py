"""An encoder with a decoder, from a checkpoint on disk: each side's routers on its own tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

from moegeo_cli import analyze, invariance
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedArchitectureError
from moegeo_cli.geometry.dead import tokens_for_power
from moegeo_cli.measuring.probe import default_tokens
from moegeo_cli.models.given import Models
from tests.architectures import oracle
from tests.architectures.table import PAGE, row, write_probe
from tests.architectures.zoo import save_tiny

START = 0


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("switch") / "checkpoint-0"
    save_tiny("switch_transformers", path)
    return path


def call(model: Any, ids: list[int], split: int) -> torch.Tensor:
    """Logits of the target's tokens, one sequence at a time."""
    decoder = [START, *ids[split:-1]]
    return model(
        input_ids=torch.tensor([ids[:split]]), decoder_input_ids=torch.tensor([decoder])
    ).logits[0, : len(ids) - split]


def watch(model: Any, pairs: list[tuple[list[int], int]]) -> dict[str, tuple[np.ndarray, Any]]:
    """By router: how many tokens each expert was really called with, and the routers' logits."""
    calls: dict[str, np.ndarray] = {}
    logits: dict[str, list[torch.Tensor]] = {}
    handles = []
    for path, module in model.named_modules():
        block, _, name = path.rpartition(".experts.expert_")
        if name.isdecimal():
            calls.setdefault(f"{block}.router", np.zeros(8))

            def count(_: Any, args: Any, block: str = block, expert: int = int(name)) -> None:
                calls[f"{block}.router"][expert] += len(args[0])

            handles.append(module.register_forward_pre_hook(count))
        if path.endswith("router.classifier"):

            def keep(_: Any, args: Any, out: Any, path: str = path) -> None:
                logits.setdefault(path.removesuffix(".classifier"), []).append(out.reshape(-1, 8))

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        for ids, split in pairs:
            call(model, ids, split)
    for handle in handles:
        handle.remove()
    return {path: (calls[path], torch.cat(logits[path])) for path in calls}


def traces(
    model: Any, path: str, pairs: list[tuple[list[int], int]], unit: str
) -> tuple[np.ndarray, float]:
    """Squared gradients of a router's parameter, summed by row, and the loss of all."""
    weight = model.get_submodule(path).classifier.weight
    weight.requires_grad_(True)
    sums, total = np.zeros(8), 0.0
    for ids, split in pairs:
        losses = F.cross_entropy(
            call(model, ids, split), torch.tensor(ids[split:]), reduction="none"
        )
        total += float(losses.detach().sum())
        for loss in losses if unit == "loss_token" else [losses.sum()]:
            gradient = torch.autograd.grad(loss, weight, retain_graph=True)[0]
            sums += gradient.double().square().sum(1).numpy()
    weight.requires_grad_(False)
    return sums, total


@pytest.mark.parametrize("unit", ["sequence", "loss_token"])
def test_switch_is_measured_whole(switch: Path, tmp_path: Path, unit: str) -> None:
    ids = write_probe(tmp_path / "probe.jsonl")
    run = analyze(switch, probe=tmp_path / "probe.jsonl", unit=unit, baseline="none", cache=False)
    [checkpoint] = run.checkpoints
    assert row("switch_transformers", switch, run) in PAGE.read_text().splitlines()
    model = oracle.load_whole(switch)
    pairs = [(sequence, (len(sequence) + 1) // 2) for sequence in ids]
    seen = watch(model, pairs)
    assert {layer.router for layer in checkpoint.layers} == set(seen)
    assert checkpoint.coverage.routers_found == checkpoint.coverage.routers_measured == 4
    # Two routers of one layer are told apart by their paths.
    assert sorted(layer.layer for layer in checkpoint.layers) == [0, 1, 1, 3]
    dropped = 0.0
    for layer in checkpoint.layers:
        counts, logits = seen[layer.router]
        side = [n if "encoder" in layer.router else len(s) - n for s, n in pairs]
        assert layer.metrics["fsi"].n == len(logits) == sum(side)
        dropped += sum(side) - counts.sum()
        np.testing.assert_allclose(layer.load, counts / counts.sum(), atol=1e-12)
        mean = torch.softmax(logits.double(), -1).mean(0)
        np.testing.assert_allclose(layer.mean_probability, mean, atol=1e-6)
        expected, loss = traces(model, layer.router, pairs, unit)
        np.testing.assert_allclose(layer.fisher_trace, expected / sum(side), rtol=2e-3)
        assert checkpoint.loss.value == pytest.approx(loss / checkpoint.loss.n, rel=1e-5)
    assert dropped > 0, "no expert was full: the capacity was not put to the test"
    assert checkpoint.loss.n == run.probe["loss_tokens"] == sum(len(s) - n for s, n in pairs)
    assert "source" in " ".join(checkpoint.replay["notes"])


def test_labels_say_where_the_target_begins(switch: Path, tmp_path: Path) -> None:
    """Pairs of one length and unequal splits; a sequence without a target; any batch size."""
    generator = np.random.default_rng(1)
    ids = [[int(v) for v in generator.integers(3, 64, n)] for n in (12, 12, 12, 12, 1, 7)]
    splits = [4, 9, 4, 9, 1, 6]
    lines = [
        {"input_ids": s, **({"labels": [-100] * n + s[n:]} if n < len(s) else {})}
        for s, n in zip(ids, splits, strict=True)
    ]
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = [
        analyze(switch, probe=probe, unit="sequence", baseline="none", cache=False, batch_size=b)
        for b in (1, None)
    ]
    model = oracle.load_whole(switch)
    pairs = list(zip(ids, splits, strict=True))
    seen = watch(model, [(s, n) for s, n in pairs if n < len(s)])
    alone, batched = (run.checkpoints[0] for run in runs)
    for layer, other in zip(alone.layers, batched.layers, strict=True):
        expected, loss = traces(model, layer.router, [p for p in pairs if p[1] < len(p[0])],
                                "sequence")  # fmt: skip
        tokens = sum(splits if "encoder" in layer.router else
                     [len(s) - n for s, n in pairs])  # fmt: skip
        assert layer.metrics["fsi"].n == other.metrics["fsi"].n == tokens
        for found in (layer, other):
            np.testing.assert_allclose(found.fisher_trace, expected / tokens, rtol=2e-3)
        np.testing.assert_allclose(layer.load, other.load, atol=1e-12)
        if "decoder" in layer.router:
            counts = seen[layer.router][0]
            np.testing.assert_allclose(layer.load, counts / counts.sum(), atol=1e-12)
    assert alone.loss.n == sum(len(s) - n for s, n in pairs)
    assert alone.loss.value == pytest.approx(loss / alone.loss.n, rel=1e-5)


def test_the_way_between_checkpoints_is_of_each_sides_tokens(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    for step in (0, 1):
        save_tiny("switch_transformers", run_folder / f"checkpoint-{step}", seed=step)
    ids = write_probe(tmp_path / "probe.jsonl")
    run = analyze(run_folder, probe=tmp_path / "probe.jsonl", cache=False)
    pairs = [(sequence, (len(sequence) + 1) // 2) for sequence in ids]
    before, after = (
        watch(oracle.load_whole(run_folder / f"checkpoint-{step}"), pairs) for step in (0, 1)
    )
    [way] = run.dynamics
    assert len(way["layers"]) == 4
    for layer in way["layers"]:
        p, q = (torch.softmax(seen[layer["router"]][1].double(), -1) for seen in (before, after))
        chord = (p.sqrt() - q.sqrt()).norm(dim=-1)
        speed = float((4 * torch.asin(chord / 2)).mean())
        assert layer["metrics"]["speed"].value == pytest.approx(speed, rel=1e-4)


def test_a_router_missing_from_one_side_is_named(switch: Path, tmp_path: Path) -> None:
    """The other side's router of the same layer does not stand in for it."""
    shutil.copytree(switch, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    name = "decoder.block.1.layer.2.mlp.router.classifier.weight"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    write_probe(tmp_path / "probe.jsonl")
    with pytest.raises(IncompleteCheckpointError, match=r"decoder\.block\.1"):
        analyze(tmp_path / "broken", probe=tmp_path / "probe.jsonl", cache=False)


def test_the_probe_is_large_enough_for_half_of_it_a_router(switch: Path) -> None:
    assert default_tokens(open_run(switch), Models()) == max(8192, 2 * tokens_for_power(8, 1, 4))


def test_no_rewriting_of_an_encoder_decoder_is_claimed(switch: Path, tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.jsonl")
    with pytest.raises(UnsupportedArchitectureError, match="encoder and a decoder"):
        invariance(switch, probe=tmp_path / "probe.jsonl")


def test_nllb_is_refused_while_transformers_calls_two_of_its_experts(tmp_path: Path) -> None:
    """What the refusal says: whatever the routers choose, experts 0 and 1 do the work."""
    save_tiny("nllb-moe", tmp_path)
    ids = write_probe(tmp_path / "probe.jsonl")
    with pytest.raises(UnsupportedArchitectureError, match=r"nllb-moe .*experts 0 and 1"):
        analyze(tmp_path, probe=tmp_path / "probe.jsonl", cache=False)
    seen = watch(oracle.load_whole(tmp_path), [(s, len(s) // 2) for s in ids])
    assert seen
    for counts, logits in seen.values():
        assert len(set(logits.argmax(-1).tolist())) > 2
        assert counts[:2].all()
        assert not counts[2:].any(), "transformers follows the routers now: measure this type"
