"""Experts as functions: closed forms against autograd through the model's own module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moegeo_cli.expert_functions.blocks import ExpertBlock, find_experts
from moegeo_cli.expert_functions.functions import CalledExpert, Experts, open_experts
from moegeo_cli.expert_functions.jacobians import (
    PairProducts,
    leading_singular_values,
    mean_products,
    pair_products,
)
from moegeo_cli.expert_functions.surgery import match_neurons, merge, restoring_weights, silence
from moegeo_cli.geometry.jacobian import alignment_ratio
from moegeo_cli.routers.finding import find_routers
from tests.architectures.zoo import tiny_config
from tests.tiny_models import build_tiny

# One of each layout, gate, bias, clamp and way of calling.
KINDS = (
    "mixtral", "gpt_oss", "dbrx", "jetmoe", "llama4_text", "nemotron_h", "aria_text",
    "longcat_flash", "deepseek_v4", "gemma4_text", "inkling2_text",
)  # fmt: skip
LENGTHS = (7, 4, 9)


def build(model_type: str) -> Any:
    from transformers import AutoModelForCausalLM

    if model_type in {"mixtral", "gpt_oss"}:
        model = build_tiny(model_type)
    else:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type)).float().eval()
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim >= 2:
                    tensor.normal_(0, 0.2)
    model.set_experts_implementation("eager")
    return model.requires_grad_(False)


def open_block(model: Any) -> tuple[Experts, torch.Tensor]:
    """The experts of the last router that are functions of one token, and what reaches them."""
    blocks = [b for r in find_routers(model) if (b := find_experts(model, r)) and not b.problem]
    block = blocks[-1]
    seen: list[torch.Tensor] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
        seen.append(x.reshape(-1, x.shape[-1]))

    handle = (block.input_module or block.router.module).register_forward_pre_hook(
        take, with_kwargs=True
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for length in LENGTHS:
            ids = torch.randint(3, 60, (1, length), generator=generator)
            model(input_ids=ids, use_cache=False)
    handle.remove()
    x_ND = torch.cat(seen)
    return open_experts(block, x_ND), x_ND


def oracle_jacobian(block: ExpertBlock, expert: int, x_D: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.functional.jacobian(lambda x: block.call(expert, x[None])[0], x_D)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("model_type", KINDS)
def test_closed_forms_are_what_autograd_gives(model_type: str) -> None:
    experts, x_ND = open_block(build(model_type))
    assert experts.layout is not None, experts.method
    assert "closed form" in experts.method
    assert len(x_ND) == sum(LENGTHS)
    few = x_ND[::7]
    count = experts.block.experts
    generator = torch.Generator().manual_seed(1)
    for e in (1, count - 1):
        function = experts.at(e, few)
        identity = torch.eye(experts.width)[None]
        pushed = function.push(identity)
        for n, x_D in enumerate(few):
            expected = oracle_jacobian(experts.block, e, x_D)
            scale = expected.norm()
            assert (pushed[n].T - expected).norm() <= 2e-6 * scale
            u = torch.randn(len(few), 2, expected.shape[0], generator=generator)
            pulled = function.pull(u)[n]
            assert (pulled - u[n] @ expected).norm() <= 2e-6 * (u[n] @ expected).norm()
        called = CalledExpert(experts.block, e, few)
        v = torch.randn(len(few), 3, experts.width, generator=generator)
        torch.testing.assert_close(function.push(v), called.push(v), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(function.values(), called.values(), rtol=1e-4, atol=1e-5)


def all_products(experts: Experts, x_TD: torch.Tensor, directions: int | None) -> Any:
    found: list[PairProducts] = []
    used = pair_products(experts, x_TD, None, directions, 0, found.append)
    parts = [
        (alignment_ratio(p.inner, p.norm, p.norm), alignment_ratio(p.null_inner, p.norm,
         p.null_norm)) for p in found
    ]  # fmt: skip
    return used, [np.concatenate([p[i][j] for p in parts]) for i in (0, 1) for j in (0, 1)]


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "nemotron_h"])
def test_alignments_are_those_of_whole_jacobians(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moegeo_cli.expert_functions.jacobians.BUFFER_BYTES", 2**18)  # many chunks
    experts, x_ND = open_block(build(model_type))
    flat = torch.stack([
        torch.stack([oracle_jacobian(experts.block, e, x).flatten() for x in x_ND])
        for e in range(experts.block.experts)
    ], 1).double()  # fmt: skip
    flat = flat / flat.norm(dim=-1, keepdim=True)
    expected = (flat @ flat.transpose(1, 2)).numpy()
    used, (values, variance, null, _) = all_products(experts, x_ND, None)
    assert used == 0
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert not variance.any()
    off = ~np.eye(values.shape[1], dtype=bool)
    assert np.abs(null[:, off]).mean() < 0.25
    used, (values, variance, *_) = all_products(experts, x_ND, 64)
    assert used == 64
    score = (values - expected)[:, off] / np.sqrt(variance[:, off])
    assert 0.5 < np.sqrt((score**2).mean()) < 1.6


def test_autograd_stands_in_where_no_closed_form_is_known() -> None:
    torch.manual_seed(0)
    router = find_routers(build("mixtral"))[0]
    modules = nn.ModuleList([
        nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 10), nn.LayerNorm(10))
        for _ in range(3)
    ])  # fmt: skip
    x_ND = torch.randn(5, 10)
    block = ExpertBlock(router, modules.requires_grad_(False), "list", 3, members=tuple(modules))
    experts = open_experts(block, x_ND)
    assert experts.layout is None
    assert "autograd" in experts.method
    jacobians = [[oracle_jacobian(block, e, x) for x in x_ND] for e in range(3)]
    flat = torch.stack([torch.stack([j.flatten() for j in row]) for row in jacobians], 1).double()
    flat = flat / flat.norm(dim=-1, keepdim=True)
    _, (values, *_) = all_products(experts, x_ND, 0)
    np.testing.assert_allclose(values, (flat @ flat.transpose(1, 2)).numpy(), atol=1e-5)
    weights = torch.tensor([0.5, 1.0, 0.0, 2.0, 1.0])
    means = torch.stack([
        sum(w * j for w, j in zip(weights, row, strict=True)).flatten() for row in jacobians
    ]).double()  # fmt: skip
    means = means / means.norm(dim=1, keepdim=True)
    found = mean_products(experts, lambda e: (x_ND, weights), 0)
    np.testing.assert_allclose(found, (means @ means.T).numpy(), atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_singular_values_are_those_of_the_jacobian(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:  # the range finder finds all directions of a Jacobian this small
        monkeypatch.setattr("moegeo_cli.expert_functions.jacobians.EXACT_SPECTRUM", 1)
    experts, x_ND = open_block(build("mixtral"))
    few = x_ND[:3]
    values, norms = leading_singular_values(experts.at(2, few), 3, experts.width, 0)
    for n, x_D in enumerate(few):
        jacobian = oracle_jacobian(experts.block, 2, x_D).double()
        expected = torch.linalg.svdvals(jacobian)
        np.testing.assert_allclose(values[n], expected[: values.shape[1]], rtol=1e-4, atol=1e-6)
        tolerance = 1e-5 if whole else 0.5
        assert norms[n] == pytest.approx(float(jacobian.square().sum()), rel=tolerance)


def test_mean_jacobians_of_closed_forms() -> None:
    experts, x_ND = open_block(build("mixtral"))
    weights = torch.linspace(0.1, 2, len(x_ND))
    means = []
    for e in range(experts.block.experts):
        parts = [w * oracle_jacobian(experts.block, e, x) for w, x in zip(weights, x_ND)]  # noqa: B905
        means.append(torch.stack(parts).sum(0).flatten().double())
    flat = torch.stack([m / m.norm() for m in means])
    found = mean_products(experts, lambda e: None if e == 1 else (x_ND, weights), 0)
    expected = (flat @ flat.T).numpy()
    expected[1] = expected[:, 1] = np.nan
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "dbrx", "nemotron_h"])
def test_a_permuted_copy_is_matched_and_merging_it_changes_nothing(
    model_type: str, flipped: bool
) -> None:
    """SwiGLU's up rows and down columns may change sign together; gpt_oss clamps and adds 1 to up,
    and nemotron's squared ReLU has no such freedom.
    """
    odd = model_type in {"mixtral", "dbrx"}
    experts, x_ND = open_block(build(model_type))
    layout = experts.layout
    assert layout is not None
    order = torch.randperm(layout.neurons, generator=torch.Generator().manual_seed(2))
    for mine, other in zip(layout.rows(0), layout.rows(2), strict=True):
        other.copy_(mine[order])
    for mine, other in zip(layout.bias_rows(0), layout.bias_rows(2), strict=True):
        other.copy_(mine[order])
    layout.outward[2].copy_(layout.outward[0][:, order])
    if layout.bias_out is not None:
        layout.bias_out[2].copy_(layout.bias_out[0])
    signs = torch.ones(layout.neurons)
    if flipped and odd:
        signs[::3] = -1.0
        layout.rows(2)[-1].mul_(signs[:, None])
        layout.outward[2].mul_(signs)
    before = experts.block.call(0, x_ND)
    torch.testing.assert_close(experts.block.call(2, x_ND), before, rtol=1e-4, atol=1e-5)
    found = match_neurons(layout, 2, 0)
    assert found[0].tolist() == order.tolist()
    assert found[1].tolist() == signs.tolist()
    state = [p.clone() for p in experts.block.module.parameters()]
    with restoring_weights([(experts, 0), (experts, 2)]):
        merge(experts, 0, 2, 0.3)
        for e in (0, 2):
            torch.testing.assert_close(experts.block.call(e, x_ND), before, rtol=1e-4, atol=1e-5)
        silence(experts, 2)
        assert not experts.block.call(2, x_ND).any()
    for kept, now in zip(state, experts.block.module.parameters(), strict=True):
        assert torch.equal(kept, now)
