"""Continuing prompts: a slow loop of its own gives the same draws, in whatever batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moegeo_cli.commands.routing import generation
from moegeo_cli.commands.routing.generation import continue_prompts
from moegeo_cli.errors import UnsupportedArchitectureError
from tests.end_to_end.conftest import random_ids
from tests.tiny_models import build_tiny

LENGTHS = [5, 3, 5, 9, 3, 5]


def prompts() -> list[np.ndarray]:
    return [np.array(ids) for ids in random_ids(LENGTHS)]


def by_hand(model: Any, given: list[np.ndarray], count: int, seed: int) -> list[list[int]]:
    """One forward per length and token, shortest prompts first."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = [[] for _ in given]
    for length in sorted({len(p) for p in given}):
        places = [i for i, p in enumerate(given) if len(p) == length]
        for _ in range(count):
            logits = []
            for place in places:
                ids = torch.tensor([[*given[place].tolist(), *found[place]]])
                with torch.no_grad():
                    logits.append(model(input_ids=ids).logits[0, -1].double())
            drawn = torch.multinomial(torch.stack(logits).softmax(-1), 1, generator=generator)
            for place, token in zip(places, drawn[:, 0].tolist(), strict=True):
                found[place].append(token)
    return found


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_tokens_are_those_of_a_loop_without_a_cache(model_type: str) -> None:
    model = build_tiny(model_type)
    heard: list[int] = []
    found = continue_prompts(model, prompts(), 4, 7, heard.append)
    assert [row.tolist() for row in found] == by_hand(model, prompts(), 4, 7)
    assert sum(heard) == 4 * len(LENGTHS)
    other = continue_prompts(model, prompts(), 4, 8)
    assert any((a != b).any() for a, b in zip(found, other, strict=True))


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    model = build_tiny("mixtral")
    prompt = np.array([3, 1, 4])
    drawn = np.concatenate(continue_prompts(model, [prompt] * 6000, 1, 0))
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1].double()
    expected = logits.softmax(-1).numpy() * 6000
    counts = np.bincount(drawn, minlength=len(expected))
    often = expected > 5
    score = (counts - expected)[often] / np.sqrt(expected[often])
    assert (score**2).sum() < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_many_prompts_go_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 12)
    found = continue_prompts(build_tiny("mixtral"), prompts(), 3, 0)
    assert [len(row) for row in found] == [3] * len(LENGTHS)


class Broken(nn.Module):
    def __init__(self, value: float | None) -> None:
        super().__init__()
        self.weight, self.value = nn.Parameter(torch.zeros(1)), value

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        if self.value is None:
            raise TypeError("takes no such thing")
        return SimpleNamespace(logits=torch.full((*input_ids.shape, 4), self.value))


@pytest.mark.parametrize(("value", "word"), [(None, "fails"), (float("nan"), "not finite")])
def test_a_model_that_cannot(value: float | None, word: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=word) as caught:
        continue_prompts(Broken(value), prompts(), 2, 0)
    assert "--generate" in str(caught.value.hint)
