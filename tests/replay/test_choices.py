"""Every form in which a router gives its choice is read as the choice that was put into it.

Legend: N tokens, E experts, K experts chosen per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.choices import output_parts, read_choice
from moegeo_cli.routers.finding import Router
from tests.traces import EXPERTS, TOP_K, WIDTH, router_of

TOKENS = 6
LOGITS = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(0))
SCORES = LOGITS.softmax(1)


def router(top_k: int | None = TOP_K, **changes: Any) -> Router:
    weights = torch.ones(EXPERTS, WIDTH).numpy()
    return dataclasses.replace(router_of(weights, top_k=top_k), **changes)


def wanted(top_k: int = TOP_K) -> list[dict[int, float]]:
    """Token by token: the experts with the largest scores, each with its score as weight."""
    rows = []
    for scores in SCORES.tolist():
        best = sorted(range(EXPERTS), key=lambda e: -scores[e])[:top_k]
        rows.append({e: scores[e] for e in best})
    return rows


def read(of: Router, output: Any) -> tuple[list[dict[int, float]], bool]:
    selected, weights, observed = read_choice(of, output, LOGITS)
    assert selected.shape == weights.shape
    pairs = zip(selected.tolist(), weights.tolist(), strict=True)
    return [dict(zip(*row, strict=True)) for row in pairs], observed


def chosen(top_k: int = TOP_K) -> tuple[torch.Tensor, torch.Tensor]:
    weights_NK, selected_NK = SCORES.topk(top_k)
    return weights_NK, selected_NK


def indices() -> Any:
    weights, selected = chosen()
    return LOGITS, weights, selected


def indices_in_batches() -> Any:
    weights, selected = chosen()
    return {"logits": LOGITS.reshape(2, 3, -1), "weights": weights.reshape(2, 3, -1),
            "experts": selected.reshape(2, 3, -1)}  # fmt: skip


def indices_and_all_weights() -> Any:
    return [LOGITS, SCORES, chosen()[1]]


def masked_scores() -> Any:
    weights, selected = chosen()
    return torch.zeros_like(SCORES).scatter(1, selected, weights), LOGITS


def sorted_by_expert() -> Any:
    """Slots in the order of their experts, written slot by slot."""
    weights, selected = chosen()
    slots = [(int(e), slot) for slot, e in enumerate(selected.flatten())]
    order = torch.tensor([slot for _, slot in sorted(slots)])
    counts = [sum(e == own for e, _ in slots) for own in range(EXPERTS)]
    return order, order // TOP_K, weights.flatten()[order], counts, LOGITS


FORMS: list[Callable[[], Any]] = [
    indices, indices_in_batches, indices_and_all_weights, masked_scores, sorted_by_expert,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_token_by_token(form: Callable[[], Any]) -> None:
    found, observed = read(router(), form())
    assert observed
    assert found == [pytest.approx(row) for row in wanted()]


def test_a_token_beyond_the_capacity_of_its_expert_has_none() -> None:
    weights, selected = chosen(1)
    mask = torch.zeros(TOKENS, EXPERTS, dtype=torch.long).scatter(1, selected, 1)
    mask[2] = 0
    found, observed = read(router(1), (mask, weights, LOGITS))
    assert observed
    expected = wanted(1)
    expected[2] = {-1: 0.0}
    assert found == [pytest.approx(row) for row in expected]


def test_a_parent_that_chooses_is_asked() -> None:
    parent = SimpleNamespace(route_tokens_to_experts=lambda z: z.softmax(1).topk(TOP_K))
    found, observed = read(router(parent=parent), LOGITS)
    assert observed
    assert found == [pytest.approx(row) for row in wanted()]


def test_of_logits_alone_the_choice_is_computed_and_said_to_be() -> None:
    found, observed = read(router(choice_scoring="softmax"), LOGITS)
    assert not observed
    # A score is the softmax's numerator: its weights are those up to one factor a token.
    for row, expected in zip(found, wanted(), strict=True):
        factor = sum(row.values()) / sum(expected.values())
        assert row == pytest.approx({e: w * factor for e, w in expected.items()})


def test_a_selection_bias_moves_the_choice_and_not_the_weights() -> None:
    bias = torch.zeros(EXPERTS)
    bias[3] = 1e6
    biased = router(choice_scoring="sigmoid", selection_bias_E=bias)
    found, _ = read(biased, LOGITS)
    for row, logits in zip(found, LOGITS, strict=True):
        best = max(range(3), key=lambda e: float(logits[e]))
        assert row == pytest.approx({e: float(logits[e].sigmoid()) for e in (3, best)})


def test_a_skipped_expert_has_its_own_number() -> None:
    weights, selected = chosen()
    weights, selected = weights.clone(), selected.clone()
    weights[0, 1], selected[0, 1] = 0.0, 0
    found, _ = read(router(skip_expert=EXPERTS - 1), (LOGITS, weights, selected))
    assert found[0][EXPERTS - 1] == 0.0
    assert found[1:] == [pytest.approx(row) for row in wanted()[1:]]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (LOGITS, "(6, 4)"),
        ((LOGITS, SCORES), "(6, 4), (6, 4)"),  # scores of every expert: no choice
        ((LOGITS, SCORES[:, :2], torch.zeros(5, 2, dtype=torch.long)), "(6, 4), (6, 2), (5, 2)"),
        ("text", "str"),
    ],
)
def test_what_no_form_fits_is_refused_with_what_there_was(output: Any, found: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="cannot read") as error:
        read(router(), output)
    assert error.value.found == found
    assert "model.layers.0.mlp.gate (Linear)" in error.value.message
    assert "--scoring and --top-k" in (error.value.hint or "")


def test_the_parts_of_an_output() -> None:
    assert output_parts({"a": 1, "b": 2}) == [1, 2]
    assert output_parts((1, [2])) == [1, [2]]
    assert output_parts(3) == [3]
