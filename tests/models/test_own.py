"""A user's model and its files: which tensor fills which, and what is refused before a replay."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.own import open_own_run
from moegeo_cli.errors import IncompleteCheckpointError, ShapeError, UsageError
from moegeo_cli.models.accounting import weight_facts
from moegeo_cli.models.own import OwnModels, load_state
from tests.own_models.models import Causal, spread

CPU = torch.device("cpu")


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Checkpoint:
    torch.save(state, folder / "weights.pt")
    return open_own_run(folder).newest


def source(factory: Any, dtype: torch.dtype = torch.float32) -> OwnModels:
    return OwnModels(factory, "m:f", pattern="blocks.*.gate", top_k=2, scoring="softmax",
                     device=CPU, dtype=dtype)  # fmt: skip


def state_of(seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(spread(Causal(), seed).state_dict())


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"model.{name}",
    ],
)
def test_names_match_without_the_prefixes_of_wrappers(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    state = state_of()
    model = Causal()
    checkpoint = saved(tmp_path, {rename(name): tensor for name, tensor in state.items()})
    assert load_state(model, checkpoint) == []
    assert same(model, state)
    facts = weight_facts(model)
    assert facts is not None
    assert facts["unused"] == {}


def test_a_tied_weight_may_be_saved_once(tmp_path: Path) -> None:
    state = state_of()
    del state["head.weight"]
    model = Causal()
    model.head.weight = model.embed.weight
    load_state(model, saved(tmp_path, state))
    assert torch.equal(model.head.weight, state["embed.weight"])


def test_a_missing_tensor_is_named_with_those_that_are_in_the_files_alone(tmp_path: Path) -> None:
    state = state_of()
    state["blocks.0.router.weight"] = state.pop("blocks.0.gate.weight")
    with pytest.raises(IncompleteCheckpointError, match="1 tensors that the model needs") as caught:
        load_state(Causal(), saved(tmp_path, state))
    assert "blocks.0.gate.weight" in str(caught.value.found)
    assert "blocks.0.router.weight" in str(caught.value.found)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    state = state_of()
    state["blocks.1.gate.weight"] = torch.zeros(6, 12)
    with pytest.raises(ShapeError, match=r"blocks\.1\.gate\.weight") as caught:
        load_state(Causal(), saved(tmp_path, state))
    assert "(6, 12) in the file, (5, 12) in the model" in str(caught.value.found)


def test_tensors_of_the_files_alone_are_a_note_of_that_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    more = saved(tmp_path / "a", {**state_of(), "critic.weight": torch.ones(2)})
    models = source(lambda config: Causal())
    model: Any = models.load(more)
    assert model.notes == ["1 tensors of the files are not the model's: critic.weight"]
    again: Any = models.load(saved(tmp_path / "b", state_of(1)))
    assert again is model, "built once"
    assert model.notes == []
    assert same(model.inner, state_of(1))


def test_the_model_is_frozen_in_evaluation_mode_and_of_the_wanted_dtype(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, state_of())
    model = source(lambda config: Causal(), torch.bfloat16).load(checkpoint)
    assert not model.training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.bfloat16, False)}


def test_a_fresh_initialisation_follows_from_its_seed(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, state_of())
    models = source(lambda config: Causal())
    first, other, again = (models.initialise(checkpoint, seed) for seed in (1, 2, 1))
    weights = [model.inner.head.weight for model in (first, other, again)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert same(models.load(checkpoint).inner, state_of()), "loading follows"


def fails(config: Any) -> nn.Module:
    raise KeyError("no such size")


def leaves(config: Any) -> nn.Module:
    sys.exit(3)


@pytest.mark.parametrize(
    ("factory", "words", "found"),
    [
        (fails, "m:f fails to build the model", "KeyError: 'no such size'"),
        (leaves, "m:f fails to build the model", "SystemExit: 3"),
        (lambda config: {"a": 1}, "m:f gives no torch.nn.Module", "dict"),
    ],
)
def test_a_factory_that_gives_no_model(
    factory: Any, words: str, found: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        source(factory).load(saved(tmp_path, state_of()))
    assert caught.value.found == found


def test_an_interrupt_within_a_factory_goes_on(tmp_path: Path) -> None:
    def interrupted(config: Any) -> nn.Module:
        raise KeyboardInterrupt

    checkpoint = saved(tmp_path, state_of())
    models = source(interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.load(checkpoint)
