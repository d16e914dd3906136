"""Routers of a module tree: found by structure or by name, and described."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError, UsageError
from moegeo_cli.routers.finding import find_other_routers, find_routers


class Block(nn.Module):
    """A router beside its experts."""

    def __init__(self, name: str = "gate", experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(6, experts, bias=False))
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(experts))
        self.top_k = top_k


class Model(nn.Module):
    """Layers of blocks, numbered from 0."""

    def __init__(self, *blocks: nn.Module, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": block}) for block in blocks)
        if tower is not None:
            self.vision_tower = nn.ModuleDict({"mlp": tower})


def test_a_router_stands_beside_experts_and_is_described_by_its_weight() -> None:
    model = Model(Block(top_k=3), Block("router", experts=5), nn.Linear(6, 6))
    one, other = find_routers(model)
    assert (one.layer, one.path, one.experts, one.top_k) == (0, "layers.0.mlp.gate", 4, 3)
    assert (other.layer, other.path, other.experts) == (1, "layers.1.mlp.router", 5)
    assert one.weight_ED is model.layers[0]["mlp"].gate.weight
    assert (one.parent, one.module) == (model.layers[0]["mlp"], one.linear)
    assert (one.bias_E, one.selection_bias_E, one.choice_scoring) == (None, None, None)


def test_layers_come_in_the_order_of_their_numbers() -> None:
    model = Model(*(Block() for _ in range(12)))
    assert [r.layer for r in find_routers(model)] == list(range(12))


def test_a_gate_without_experts_beside_it_is_no_router() -> None:
    assert find_routers(nn.ModuleDict({"gate": nn.Linear(6, 4), "up_proj": nn.Linear(6, 4)})) == []


def test_routers_of_a_tower_are_kept_apart() -> None:
    model = Model(Block(), tower=Block())
    assert [r.path for r in find_routers(model)] == ["layers.0.mlp.gate"]
    assert find_other_routers(model) == ["vision_tower.mlp.gate"]


def test_biases_are_told_apart_by_what_they_act_on() -> None:
    block = Block()
    block.gate = nn.Linear(6, 4, bias=True)
    block.gate.register_buffer("e_score_correction_bias", torch.arange(4.0).reshape(1, 4))
    [router] = find_routers(Model(block))
    assert router.bias_E is block.gate.bias
    assert router.selection_bias_E is not None
    assert router.selection_bias_E.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_router_with_one_linear_layer_inside_is_that_layer() -> None:
    block = Block()
    inner = nn.Linear(6, 4, bias=False)
    block.gate = nn.Sequential(inner, nn.Softmax(-1))
    [router] = find_routers(Model(block))
    assert router.linear is inner
    assert router.module is block.gate


def test_a_router_that_is_no_linear_map_is_refused_by_name() -> None:
    block = Block()
    block.gate = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    with pytest.raises(UnsupportedArchitectureError, match="is not one linear map") as error:
        find_routers(Model(block))
    assert "layers.0.mlp.gate" in error.value.message
    odd = Block()
    odd.gate = nn.Conv1d(2, 3, 4)
    with pytest.raises(UnsupportedArchitectureError, match="3 dimensions, not 2"):
        find_routers(Model(odd))


def test_shared_experts_that_a_router_scores_do_not_compete() -> None:
    block = Block(experts=6)
    block.gate.n_shared_experts, block.gate.num_experts = 2, 4
    [router] = find_routers(Model(block))
    assert (router.experts, router.weight_ED.shape[0]) == (4, 6)


def test_an_expert_that_skips_is_one_row_more_than_experts() -> None:
    block = Block(experts=5)
    block.gate.num_router_classes, block.gate.num_experts = 5, 4
    [router] = find_routers(Model(block))
    assert (router.skip_expert, router.experts) == (4, 5)


def test_a_pattern_finds_what_no_rule_does_and_says_what_there_is() -> None:
    model = nn.ModuleDict(
        {"part": nn.ModuleDict({"7": nn.ModuleDict({"choose": nn.Linear(6, 3)})})}
    )
    assert find_routers(model) == []
    [router] = find_routers(model, pattern="part.*.choose", top_k=2, scoring="sigmoid")
    assert (router.layer, router.top_k, router.choice_scoring) == (7, 2, "sigmoid")
    with pytest.raises(UsageError, match="fits no module of the model") as error:
        find_routers(model, pattern="nowhere")
    assert error.value.found == "linear layers: part.7.choose"


def test_what_is_given_goes_before_what_modules_say() -> None:
    [router] = find_routers(Model(Block(top_k=2)), top_k=1)
    assert router.top_k == 1
