"""Adam's second moments found in a real optimizer's file, for every way of ordering it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.errors import IncompleteCheckpointError, ShapeError, UnsafeFileError
from moegeo_cli.fisher.adam import adam_second_moments
from tests.tiny_models import build_tiny

ROUTERS = ["model.layers.1.mlp.gate.weight", "model.layers.2.mlp.gate.weight"]
STEPS = 3


def trained(groups: str, path: Path) -> tuple[Any, list[np.ndarray]]:
    """A tiny model, its optimizer in `path`, and the moments by their definition."""
    model = build_tiny("qwen3_moe")
    named = dict(model.named_parameters())
    if groups == "trainer":
        from transformers.trainer_pt_utils import get_parameter_names

        from moegeo_cli.fisher.adam import UNDECAYED

        decayed = get_parameter_names(model, [torch.nn.LayerNorm], [UNDECAYED.pattern])
        parameters: Any = [
            {"params": [p for n, p in named.items() if n in decayed], "weight_decay": 0.1},
            {"params": [p for n, p in named.items() if n not in decayed], "weight_decay": 0.0},
        ]
    elif groups == "routers apart":
        parameters = [
            {"params": [p for n, p in named.items() if n not in ROUTERS]},
            {"params": [named[n] for n in ROUTERS], "weight_decay": 0.0},
        ]
    elif groups == "one router apart":
        parameters = [
            {"params": [p for n, p in named.items() if n != ROUTERS[0]]},
            {"params": [named[ROUTERS[0]]]},
        ]
    else:
        parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99))
    moments = [torch.zeros_like(named[r], dtype=torch.float64) for r in ROUTERS]
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        ids = torch.randint(0, 64, (2, 12), generator=generator)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for moment, router in zip(moments, ROUTERS, strict=True):
            grad = named[router].grad
            assert grad is not None
            moment.mul_(0.99).add_(0.01 * grad.double().square())
        optimizer.step()
    torch.save(optimizer.state_dict(), path)
    return model, [m.numpy() / (1 - 0.99**STEPS) for m in moments]


@pytest.mark.parametrize("groups", ["trainer", "plain", "routers apart"])
def test_moments_are_those_of_the_gradients(groups: str, tmp_path: Path) -> None:
    model, expected = trained(groups, tmp_path / "optimizer.pt")
    found = adam_second_moments(tmp_path / "optimizer.pt", model, ROUTERS)
    for got, moment in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, moment, rtol=1e-4, atol=1e-6 * moment.max())


def test_an_order_that_is_not_certain_is_refused(tmp_path: Path) -> None:
    model, _ = trained("one router apart", tmp_path / "optimizer.pt")
    with pytest.raises(ShapeError, match="cannot be assigned"):
        adam_second_moments(tmp_path / "optimizer.pt", model, ROUTERS)


def test_another_models_state_is_refused_rather_than_guessed(tmp_path: Path) -> None:
    trained("trainer", tmp_path / "optimizer.pt")
    other = build_tiny("mixtral")
    with pytest.raises(ShapeError, match="cannot be assigned"):
        adam_second_moments(
            tmp_path / "optimizer.pt", other, ["model.layers.0.mlp.gate.weight"]
        )  # fmt: skip


def test_a_checkpoint_without_optimizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(IncompleteCheckpointError) as caught:
        adam_second_moments(tmp_path / "optimizer.pt", build_tiny("mixtral"), [])
    assert "--fisher empirical" in (caught.value.hint or "")


class Payload:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"state": Payload(tmp_path / "ran"), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(
        UnsafeFileError, match=r"optimizer\.pt cannot be read as plain tensors, and is refused"
    ):
        adam_second_moments(tmp_path / "optimizer.pt", build_tiny("mixtral"), [])
    assert not (tmp_path / "ran").exists()
