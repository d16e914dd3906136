"""`own_row` against a loop over the files' tensors, in families that store experts differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import check
from tests.tiny_models import save_tiny

# family -> (router's weight, an expert's first projections as W with W x), of layer 2
FAMILIES = {
    "qwen3_moe": ("mlp.gate.weight", ("mlp.experts.{e}.gate_proj.weight",
                                      "mlp.experts.{e}.up_proj.weight")),
    "deepseek_v3": ("mlp.gate.weight", ("mlp.experts.{e}.gate_proj.weight",
                                        "mlp.experts.{e}.up_proj.weight")),
    "mixtral": ("block_sparse_moe.gate.weight", ("block_sparse_moe.experts.{e}.w1.weight",
                                                 "block_sparse_moe.experts.{e}.w3.weight")),
    "gpt_oss": ("mlp.router.weight", ("mlp.experts.gate_up_proj",)),
    "granitemoe": ("block_sparse_moe.router.layer.weight",
                   ("block_sparse_moe.input_linear.weight",)),
}  # fmt: skip


def own_share(family: str, path: Path) -> float:
    state = {n.removeprefix("model.layers.2."): t for n, t in load_file(path).items()}
    router, firsts = FAMILIES[family]
    rows = state[router].double()
    hits = 0
    for e in range(len(rows)):
        reach = torch.zeros(len(rows), dtype=torch.double)
        for name in firsts:
            held = state[name.format(e=e)].double()
            first = held[e] if held.ndim == 3 else held
            first = first.T if family == "gpt_oss" else first
            for f, row in enumerate(rows):
                reach[f] += (first @ row).square().sum()
        hits += int(reach.argmax()) == e
    return hits / len(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_own_row_is_the_definition(family: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path / "m")
    layer = check(path).newest.layers[-1]
    assert layer.layer == 2
    metric = layer.metrics["own_row"]
    assert metric.value == pytest.approx(own_share(family, path / "model.safetensors"))
    assert metric.null_value == pytest.approx(1 / layer.experts)
    assert metric.n == layer.experts


def test_a_square_projection_does_not_say_which_side_is_the_input(tmp_path: Path) -> None:
    path = save_tiny("mixtral", tmp_path / "m", intermediate_size=24)
    metric = check(path).newest.layers[-1].metrics["own_row"]
    assert metric.value is None
    assert metric.reason is not None
    assert "which side is the input" in metric.reason


def test_experts_that_answer_to_their_own_rows_are_counted(tmp_path: Path) -> None:
    path = save_tiny("qwen3_moe", tmp_path / "m")
    file = path / "model.safetensors"
    state = load_file(file)
    rows = state["model.layers.1.mlp.gate.weight"]
    rows /= rows.norm(dim=1, keepdim=True)
    for e, row in enumerate(rows):
        state[f"model.layers.1.mlp.experts.{e}.up_proj.weight"] += 5.0 * row
    save_file(state, file, {"format": "pt"})
    assert check(path).newest.layers[0].metrics["own_row"].value == 1.0
