"""From batches to a model's arguments and losses, against one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.replay.batches import Batch
from moegeo_cli.replay.feeding import batch_losses, call_inputs, find_rows, list_batches
from moegeo_cli.replay.losses import sequence_losses
from moegeo_cli.replay.plan import Plan

CPU = torch.device("cpu")
VOCABULARY = 11
IDS = [
    np.random.default_rng(seed).integers(0, VOCABULARY, n) for seed, n in enumerate((5, 3, 8, 5))
]
LENGTHS_S = np.array([len(i) for i in IDS])
PLAN = Plan((), np.array([0, 1, 0, 1]))


class Bigrams(nn.Module):
    """The next token's logits depend on a token and on how many came before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.seen: list[dict[str, Any]] = []

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        self.seen.append(more)
        places = torch.arange(input_ids.shape[1])[None, :, None]
        return SimpleNamespace(logits=self.table(input_ids) * (1 + places / 10))


def batches(model: nn.Module, members: list[list[int]], labels: Any = None) -> list[Any]:
    return list(list_batches(model, IDS, labels or [None] * len(IDS), members, CPU))


def alone(model: Bigrams, labels: Sequence[np.ndarray | None] = ()) -> list[float]:
    """Each sequence's loss by itself, in nats."""
    own = labels or IDS
    found = []
    for ids, known in zip(IDS, own, strict=True):
        logits = model(torch.from_numpy(ids)[None]).logits[0, :-1].detach()
        wanted = torch.from_numpy(ids if known is None else known)[1:]
        found.append(float(F.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)))
    return found


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_losses_of_batches_are_those_of_sequences_alone(batch_size: int | None) -> None:
    model = Bigrams()
    found_S = sequence_losses(model, IDS, [None] * len(IDS), PLAN, batch_size)
    np.testing.assert_allclose(found_S, alone(model), rtol=1e-5)
    assert not any(p.grad is not None for p in model.parameters())


def test_labels_that_are_ignored_carry_no_loss() -> None:
    model = Bigrams()
    labels: list[np.ndarray | None] = [None, np.full(3, -100), IDS[2].copy(), None]
    labels[2][:4] = -100  # type: ignore[index]
    found_S = sequence_losses(model, IDS, labels, PLAN, None)
    np.testing.assert_allclose(found_S, alone(model, labels), rtol=1e-5)
    assert found_S[1] == 0


def test_padding_is_masked_and_no_cache_is_asked_for() -> None:
    model = Bigrams()
    [padded], [even] = (batches(model, m) for m in ([[1, 0]], [[0, 3]]))
    given = call_inputs(model, padded, PLAN)
    assert given["use_cache"] is False
    assert given["attention_mask"].sum(1).tolist() == [3, 5]
    assert "attention_mask" not in call_inputs(model, even, PLAN)


def test_rows_of_a_batch_are_the_tokens_places_in_the_probe() -> None:
    [batch] = batches(Bigrams(), [[1, 0]])
    rows = find_rows(batch, LENGTHS_S, PLAN)
    assert rows.probe_N.tolist() == [5, 6, 7, 0, 1, 2, 3, 4]
    assert rows.sequence_N.tolist() == [1] * 3 + [0] * 5
    assert rows.group_spans == [(1, 0, 3), (0, 3, 8)]
    assert isinstance(batch, Batch)
    tokens = batch.input_ids_BN.flatten()[rows.flat].tolist()
    assert tokens == [*IDS[1].tolist(), *IDS[0].tolist()]
    assert batch_losses(batch, Bigrams()(batch.input_ids_BN).logits, PLAN).shape == (10,)
