"""Layers with different numbers of experts, joined from models that have one number each."""

from __future__ import annotations

import pytest
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.uneven import join_layers
from moegeo_cli.routers.finding import find_routers


class Model(nn.Module):
    """Three layers of a router beside as many experts."""

    def __init__(self, count: int | None) -> None:
        super().__init__()
        self.count = count
        blocks = [nn.ModuleDict({
            "gate": nn.Linear(6, count or 4),
            "experts": nn.ModuleList(nn.Linear(6, 6) for _ in range(count or 4)),
        }) for _ in range(3)]  # fmt: skip
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": block}) for block in blocks)


def test_each_layer_has_the_modules_of_a_model_of_its_own_number() -> None:
    built: list[Model] = []

    def build(count: int | None) -> Model:
        built.append(Model(count))
        return built[-1]

    model = join_layers(build, {0: 4, 1: 8, 2: 2})
    assert [m.count for m in built] == [8, 4, 2], "the largest is the model, each built once"
    assert model is built[0]
    assert {r.layer: r.experts for r in find_routers(model)} == {0: 4, 1: 8, 2: 2}
    assert model.layers[2] is built[2].layers[2]
    assert [len(layer["mlp"]["experts"]) for layer in model.layers] == [4, 8, 2]


def test_even_layers_are_the_configs_model() -> None:
    assert join_layers(Model, {}).count is None


def test_layers_that_the_files_do_not_have_are_refused_with_both_lists() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="cannot be built") as error:
        join_layers(Model, {0: 4, 5: 8})
    assert error.value.found == "routers in layers [0, 1, 2], and by the files in [0, 5]"
