"""Losses that are taken some rows at a time against cross-entropy of all of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moegeo_cli.replay import token_losses as losses

IGNORED = -100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 257])
def test_rows_at_a_time_give_the_same_bits(
    count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(count)
    vocabulary = 517
    monkeypatch.setattr(losses, "ROWS_BYTES", 4 * vocabulary * 8)
    logits = (torch.randn(count, vocabulary, generator=generator) * 5).to(dtype)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    targets[::5] = IGNORED
    weights = torch.randn(count, generator=generator)

    def both(take: object) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = logits.clone().requires_grad_(True)
        found = take(leaf)  # type: ignore[operator]
        return found.detach(), torch.autograd.grad(found, leaf, weights)[0]

    whole = both(lambda x: F.cross_entropy(x.float(), targets, reduction="none"))
    parts = both(lambda x: losses.token_losses(x[None], targets[None]))
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_the_graph_can_be_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ROWS_BYTES", 4 * 11)
    logits = torch.randn(6, 11, requires_grad=True)
    targets = torch.arange(6)
    found = losses.token_losses(logits, targets)
    whole = F.cross_entropy(logits, targets, reduction="none")
    for place in range(6):
        one, other = (
            torch.autograd.grad(x[place], logits, retain_graph=True)[0] for x in (found, whole)
        )
        assert torch.equal(one, other)
