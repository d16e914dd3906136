"""Layers with different numbers of experts, against a model that is written out here."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from moegeo_cli import analyze, experts, routing
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from moegeo_cli.errors import MoegeoError, ShapeError, UsageError
from moegeo_cli.models.loading import load_model
from moegeo_cli.models.uneven_loading import load_uneven
from tests.reference import router_metrics

TOLERANCE = 1e-4
KEPT = {1: (0, 2, 3, 5), 2: (4, 1, 0, 3, 2)}  # layer -> the experts that are left, of 6 or 8
# Groups would not be of one size any more.
CHANGES = {"deepseek_v3": {"n_group": 1, "topk_group": 1}}
ROWS = re.compile(r"\.(?:gate|router|layer)\.(?:weight|bias|e_score_correction_bias)$")


def prune(folder: Path, kept: dict[int, Sequence[int]]) -> Path:
    """Take experts out of a checkpoint's files, as a pruner does; config.json stays."""
    path, out = folder / "model.safetensors", {}
    for name, values in load_file(path).items():
        match = re.search(r"\.layers\.(\d+)\.", name)
        chosen = list(kept.get(int(match[1]), ())) if match else []
        single = re.search(r"\.experts\.(\d+)\.", name)
        if chosen and single and int(single[1]) not in chosen:
            continue
        if chosen and single:
            name = name.replace(single[0], f".experts.{chosen.index(int(single[1]))}.")
        elif chosen and (".experts." in name or ROWS.search(name) or "_linear.weight" in name):
            values = values[chosen].contiguous()
        out[name] = values
    save_file(out, path, metadata={"format": "pt"})
    return folder


def edit(folder: Path, **keys: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


@pytest.fixture
def pruned(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def get(model_type: str, kept: dict[int, Sequence[int]] = KEPT, name: str = "pruned") -> Path:
        from tests.tiny_models import save_tiny

        folder = tmp_path / name
        if model_type in CHANGES:
            save_tiny(model_type, folder, 3, **CHANGES[model_type])
        else:
            shutil.copytree(tiny(model_type, 3), folder)
        return prune(folder, kept)

    return get


def mixtral(folder: Path, ids: Sequence[int]) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Mixtral's forward of one sequence, written out: logits, and what each router saw and did."""
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config["rope_parameters"]["rope_theta"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])
        return x * scale * state[name]

    def turn(x: torch.Tensor) -> torch.Tensor:  # heads, positions, width of a head
        half = x.shape[-1] // 2
        rates = theta ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[1])[:, None] * rates
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    x, calls = state["model.embed_tokens.weight"][list(ids)], []
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, f"{at}input_layernorm.weight")
        q, k, v = (
            (h @ state[f"{at}self_attn.{n}_proj.weight"].T)
            .unflatten(-1, (count, -1))
            .transpose(0, 1)
            for n, count in (("q", heads), ("k", groups), ("v", groups))
        )
        k, v = (t.repeat_interleave(heads // groups, 0) for t in (turn(k), v))
        scores = turn(q) @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ state[f"{at}self_attn.o_proj.weight"].T
        h = norm(x, f"{at}post_attention_layernorm.weight")
        router = state[f"{at}block_sparse_moe.gate.weight"]
        z = h @ router.requires_grad_(True).T
        z.retain_grad()
        best = z.softmax(-1).topk(config["num_experts_per_tok"])
        w = best.values / best.values.sum(-1, keepdim=True)
        rows = []
        for t in range(len(ids)):
            total = torch.zeros(x.shape[1])
            for slot, expert in enumerate(best.indices[t].tolist()):
                own = f"{at}block_sparse_moe.experts.{expert}."
                w1, w2, w3 = (state[f"{own}w{i}.weight"] for i in (1, 2, 3))
                total = total + w[t, slot] * (w2 @ (F.silu(w1 @ h[t]) * (w3 @ h[t])))
            rows.append(total)
        x = x + torch.stack(rows)
        calls.append({"x": h.detach(), "z": z, "i": best.indices, "w": w.detach()})
    return norm(x, "model.norm.weight") @ state["lm_head.weight"].T, calls


@pytest.mark.parametrize("stream", [False, True])
def test_every_metric_is_that_of_the_model_written_out(
    stream: bool, pruned: Callable[..., Path], probe: Path
) -> None:
    folder = pruned("mixtral")
    losses, rows = [], [[] for _ in range(3)]
    for line in probe.read_text().splitlines():
        ids = json.loads(line)["input_ids"]
        logits, calls = mixtral(folder, ids)
        loss = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        loss.sum().backward()
        losses += loss.tolist()
        for own, call in zip(rows, calls, strict=True):
            for t in range(len(ids)):
                own.append(
                    {
                        "x": call["x"][t].double().numpy(),
                        "z": call["z"][t].tolist(),
                        "g": call["z"].grad[t].double().numpy(),
                        "i": call["i"][t].tolist(),
                        "w": call["w"][t].tolist(),
                    }
                )
    run = analyze(folder, probe=probe, baseline="none", cache=False, stream=stream)
    (checkpoint,) = run.checkpoints
    assert checkpoint.loss.value == pytest.approx(sum(losses) / len(losses), rel=TOLERANCE)
    assert [layer.experts for layer in checkpoint.layers] == [6, 4, 5]
    for layer, own in zip(checkpoint.layers, rows, strict=True):
        truth = router_metrics(own, "softmax", dense=False)
        assert layer.load == pytest.approx(truth["load"], rel=TOLERANCE, abs=1e-9)
        for name, value in truth.items():
            if isinstance(value, float):
                assert layer.metrics[name].value == pytest.approx(value, rel=TOLERANCE, abs=1e-7)
        assert layer.metrics["heterogeneity"].value == pytest.approx(
            truth["fisher.empirical.position"]["heterogeneity"], rel=TOLERANCE
        )
    note = "layers have different numbers of experts: 6 in layer 0; 5 in layer 2; 4 in layer 1"
    assert note in run.run["notes"]
    assert note in inspect_checkpoint(folder).notes
    assert [r.shape[0] for r in inspect_checkpoint(folder).routers] == [6, 4, 5]


SLOW = ("olmoe", "granitemoe", "qwen3_moe")
FAMILIES = [
    "mixtral", "gpt_oss", "deepseek_v3", *(pytest.param(t, marks=pytest.mark.slow) for t in SLOW),
]  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_of_joined_layers_is_that_of_transformers(
    model_type: str, pruned: Callable[..., Path], probe: Path
) -> None:
    """Of layers that all have four experts, transformers itself can say what comes out."""
    device, ids = torch.device("cpu"), torch.arange(2, 26)[None]
    kept = (0, 2, 3, 5)
    first = 1 if model_type in {"qwen3_moe", "deepseek_v3"} else 0
    even = pruned(model_type, dict.fromkeys(range(first, 3), kept), "even")
    key = {"deepseek_v3": "n_routed_experts", "olmoe": "num_experts"}.get(
        model_type, "num_local_experts"
    )
    edit(even, **{key: 4})
    truth = load_model(Checkpoint(even), device, torch.float32)
    edit(even, **{key: 6})
    counts = dict.fromkeys(range(first, 3), 4)
    found = load_uneven(Checkpoint(even), device, torch.float32, counts)
    torch.testing.assert_close(found(ids).logits, truth(ids).logits, rtol=0, atol=0)

    folder = pruned(model_type, {2: kept})
    whole, streamed = (
        analyze(folder, probe=probe, baseline="none", cache=False, stream=stream).checkpoints[0]
        for stream in (False, True)
    )
    experts = [layer.experts for layer in whole.layers]
    assert experts == [8 if model_type == "deepseek_v3" else 6] * (len(experts) - 1) + [4]
    assert whole.loss.value == pytest.approx(streamed.loss.value, rel=1e-6)
    for a, b in zip(whole.layers, streamed.layers, strict=True):
        assert a.metrics["fsi"].value == pytest.approx(b.metrics["fsi"].value, rel=1e-6)


@pytest.mark.slow
def test_lenses_and_a_run_of_pruned_checkpoints(
    pruned: Callable[..., Path], probe: Path, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    folder = pruned("mixtral")
    options: dict[str, Any] = {"probe": probe, "cache": False}
    whole, streamed = (experts(folder, **options, stream=stream) for stream in (False, True))
    assert [layer.experts for layer in whole.layers] == [6, 4, 5]
    for a, b in zip(whole.layers, streamed.layers, strict=True):
        for name, metric in a.metrics.items():
            assert metric.value == pytest.approx(b.metrics[name].value, rel=1e-4, abs=1e-6), name
    assert routing(folder, **options).layers
    run = tmp_path / "run"
    for step in (100, 200):
        shutil.copytree(folder, run / f"checkpoint-{step}")
    first, second = analyze(run, **options, baseline="init").checkpoints
    assert first.loss == second.loss
    shutil.rmtree(run / "checkpoint-100")
    shutil.copytree(tiny("mixtral", 3), run / "checkpoint-100")
    with pytest.raises(MoegeoError, match="by layer"):
        analyze(run, **options)


def test_a_config_may_list_the_numbers(pruned: Callable[..., Path], probe: Path) -> None:
    folder = pruned("mixtral")
    options: dict[str, Any] = {"probe": probe, "cache": False, "baseline": "none"}
    plain = analyze(folder, **options).checkpoints[0].loss
    edit(folder, num_local_experts=[6, 4, 5])
    assert analyze(folder, **options).checkpoints[0].loss == plain
    edit(folder, num_local_experts=[6, 5, 4])
    with pytest.raises(ShapeError, match="lists other numbers"):
        analyze(folder, **options)


def test_what_cannot_be_measured_is_refused_by_layer(
    pruned: Callable[..., Path], probe: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"probe": probe, "cache": False, "baseline": "none"}
    with pytest.raises(ShapeError, match=r"layer 1 has too few experts.*\n.*1 experts, of which 2"):
        analyze(pruned("mixtral", {1: (3,)}, "one"), **options)
    gap = pruned("mixtral", {1: (0, 2, 3, 5)}, "gap")
    state = load_file(gap / "model.safetensors")
    state = {n.replace("1.block_sparse_moe.experts.3", "1.block_sparse_moe.experts.5"): t
             for n, t in state.items()}  # fmt: skip
    save_file(state, gap / "model.safetensors", metadata={"format": "pt"})
    for call in (analyze, experts, routing):
        given = options if call is analyze else {"probe": probe, "cache": False}
        with pytest.raises(ShapeError, match="numbered 0 to 5"):
            call(gap, **given)
    with pytest.raises(UsageError, match="--device-map cannot place"):
        analyze(pruned("mixtral", name="parts"), **options, device_map="auto")
