"""A layer read once: norms, states and digests of its router and experts, against plain numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.reading import Piece
from moegeo_cli.commands.check.summing import sum_layer
from tests.commands.check.recorded import piece_of
from tests.traces import architecture_of

EXPERTS, WIDTH = 4, 6
WEIGHT = np.random.default_rng(0).normal(size=(EXPERTS, WIDTH)).astype(np.float32)
COARSE = np.array([1.0, 1.25, 1.5, 1.5], np.float32)


class Layer(SimpleNamespace):
    """A layer in memory, as it would be read from files."""

    def __init__(
        self, experts: dict[int, list[np.ndarray | None]] | None = None, **own: Any
    ) -> None:
        known = {
            "layer": 0, "router_digest": "r", "bias_digest": None, "weight_ED": WEIGHT,
            "bias_E": None, "selection_bias_E": None, "bias_dtype": None, "reasons": {},
            "router": SimpleNamespace(module="model.layers.0.mlp.gate", shape=WEIGHT.shape),
        }  # fmt: skip
        super().__init__(**known | own, experts=experts or {})

    def read_expert(self, expert: int) -> Iterator[Piece]:
        for place, values in enumerate(self.experts[expert]):
            digest = b"unread" if values is None else values.tobytes()
            piece = piece_of(expert, values, f"w{place}")
            yield Piece(piece.expert, piece.role, piece.name, digest, values,
                        "an unknown form" if values is None else None)  # fmt: skip

    def read_experts(self) -> Iterator[Piece]:
        for expert in sorted(self.experts):
            yield from self.read_expert(expert)


def sums_of(layer: Layer, *, quick: bool = False) -> LayerSums:
    return sum_layer(layer, architecture_of("sigmoid"), quick=quick)


def experts_of(seed: int, count: int = EXPERTS) -> dict[int, list[np.ndarray | None]]:
    generator = np.random.default_rng(seed)
    return {
        e: [generator.normal(size=(9, WIDTH)).astype(np.float32),
            generator.normal(size=(WIDTH, 9)).astype(np.float32)]
        for e in range(count)
    }  # fmt: skip


def test_a_routers_numbers_leave_out_what_is_lost() -> None:
    weight = WEIGHT.copy()
    weight[1] = 0.0
    weight[2, 3] = np.nan
    found = sums_of(Layer(weight_ED=weight))
    norms = np.linalg.norm(weight.astype(float), axis=1)
    assert found.row_norms == (pytest.approx(norms[0]), 0.0, None, pytest.approx(norms[3]))
    assert (found.router_nonfinite, found.zero_rows) == ((2,), (1,))
    rows = weight[[0, 3]].astype(float)
    values = np.linalg.svd(rows, compute_uv=False)
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
    cosine = abs(rows[0] @ rows[1]) / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    assert found.cosine == pytest.approx(cosine)
    alone = sums_of(Layer(weight_ED=weight[:2]))
    assert (alone.stable_rank, alone.cosine) == (None, None)


def test_experts_numbers_are_of_all_their_matrices() -> None:
    experts = experts_of(1)
    experts[2] = [m.copy() for m in experts[0] if m is not None]
    found = sums_of(Layer(experts))
    flat = [
        np.concatenate([m.ravel() for m in experts[e] if m is not None]) for e in range(EXPERTS)
    ]
    assert found.expert_norms == pytest.approx([np.linalg.norm(f) for f in flat], rel=1e-5)
    assert found.expert_digests is not None
    assert found.expert_digests[0] == found.expert_digests[2] != found.expert_digests[1]
    assert (found.expert_zero, found.expert_nonfinite, found.expert_near) == ((), (), ())
    assert found.sketches is not None


def test_lost_experts_are_told_apart() -> None:
    experts = experts_of(2)
    experts[0][0] = np.full((9, WIDTH), np.inf, np.float32)
    experts[1][1] = np.zeros((WIDTH, 9), np.float32)
    first = experts[3][0]
    assert first is not None
    first[4] = 0.0
    found = sums_of(Layer(experts))
    assert (found.expert_nonfinite, found.expert_zero) == ((0,), (1, 3))
    assert found.expert_norms is not None
    assert found.expert_norms[0] is None
    assert found.sketches is None, "not all are finite"


def test_rows_that_are_zero_in_every_expert_are_padding() -> None:
    experts = experts_of(3)
    for held in experts.values():
        first = held[0]
        assert first is not None
        first[7:] = 0.0
    assert sums_of(Layer(experts)).expert_zero == ()


def test_experts_closer_than_bfloat16_rounds_are_near() -> None:
    experts = experts_of(4)
    experts[3] = [m * np.float32(1 + 1e-3) for m in experts[1] if m is not None]
    found = sums_of(Layer(experts))
    [near] = found.expert_near
    assert near.experts == (1, 3)
    assert near.distance == pytest.approx(1e-3, rel=0.01)
    experts[3] = [m * np.float32(1.05) for m in experts[1] if m is not None]
    assert sums_of(Layer(experts)).expert_near == ()


def test_what_is_missing_has_its_reason() -> None:
    unread = experts_of(5)
    unread[1][0] = None
    found = sums_of(Layer(unread))
    assert found.reasons["expert values"] == "an unknown form"
    assert found.expert_norms is not None
    assert found.expert_norms[1] is None
    assert found.expert_digests is not None
    assert found.expert_digests[1] != ""
    gap = experts_of(5)
    del gap[2]
    holed = sums_of(Layer(gap))
    assert holed.reasons["experts missing"] == "the files hold no weights of experts [2]"
    assert holed.expert_digests is not None
    assert holed.expert_digests[2] == ""
    uneven = experts_of(5)
    uneven[0] = [np.ones((3, WIDTH), np.float32)]
    assert sums_of(Layer(uneven)).reasons["expert values"] == "its experts' weights differ in shape"
    none = sums_of(Layer())
    assert "no tensors of experts" in none.reasons["experts"]
    assert sums_of(Layer(experts_of(5)), quick=True).expert_digests is None


def test_biases_are_read_with_their_faults() -> None:
    bias = np.array([0.5, np.nan, -np.inf, 1.0], np.float32)
    found = sums_of(Layer(selection_bias_E=bias, bias_dtype="F32", bias_digest="b"))
    assert found.selection_bias == (0.5, None, None, 1.0)
    assert found.router_nonfinite == (1,), "minus infinity switches an expert off on purpose"
    assert found.masked == (2,)
    short = sums_of(Layer(selection_bias_E=bias[:3], bias_dtype="F32"))
    assert short.selection_bias is None
    assert short.reasons["selection_bias"] == "it has 3 entries for 4 experts"


def test_a_coarse_bias_is_told_whether_or_not_the_router_can_be_read() -> None:
    read = sums_of(Layer(selection_bias_E=COARSE, bias_dtype="BF16"))
    assert read.rounding is not None
    assert read.rounding["changes"] is not None
    lost = sums_of(Layer(weight_ED=None, selection_bias_E=COARSE, bias_dtype="BF16"))
    assert lost.rounding is not None
    assert (lost.rounding["precision"], lost.rounding["distinct"]) == ("bfloat16", 3)
    assert lost.rounding["changes"] is None
    assert lost.selection_bias == tuple(COARSE)


def test_distances_are_of_the_matrices_that_norms_are_of() -> None:
    """Experts with biases as large as their matrices: neither distance nor norm counts them."""
    experts = experts_of(6, 8)
    plain = sums_of(Layer(experts))
    generator = np.random.default_rng(0)
    biased = sums_of(
        Layer({e: [*held, generator.normal(0, 5, 9).astype(np.float32)]
               for e, held in experts.items()})
    )  # fmt: skip
    flat = [np.concatenate([m.ravel() for m in held if m is not None]).astype(float)
            for held in experts.values()]  # fmt: skip
    apart = [
        np.linalg.norm(a - b) / np.hypot(np.linalg.norm(a), np.linalg.norm(b))
        for a, b in itertools.combinations(flat, 2)
    ]
    assert plain.expert_distance == pytest.approx(np.mean(apart), rel=0.1)
    assert biased.expert_distance == pytest.approx(plain.expert_distance)
    assert (biased.expert_norms, biased.sketches) == (plain.expert_norms, plain.sketches)
    assert biased.expert_digests != plain.expert_digests


def test_experts_with_equal_matrices_and_other_biases_are_not_near() -> None:
    experts = experts_of(7)
    experts[3] = [m.copy() for m in experts[1] if m is not None]
    for e, held in experts.items():
        held.append(np.full(9, float(e), np.float32))
    assert sums_of(Layer(experts)).expert_near == ()
    last = experts[3]
    last[2] = experts[1][2]
    last[0] = last[0] * np.float32(1 + 1e-3) if last[0] is not None else None
    [near] = sums_of(Layer(experts)).expert_near
    assert near.experts == (1, 3)
