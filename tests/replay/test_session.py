"""The Fisher sums and the loss against one backward at a time, on every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.loading import load_model, swap_weights
from moegeo_cli.replay.plan import Plan
from moegeo_cli.replay.reading import RouterCall, verify_call
from moegeo_cli.replay.session import replay
from moegeo_cli.routers.finding import find_routers
from tests.tiny_models import CONFIGS, save_tiny

CPU = torch.device("cpu")
SIGMOID = {"deepseek_v3", "glm4_moe"}
DENSE = {"qwen2_moe", "olmoe"}
LENGTHS = (5, 9, 9, 17, 30, 30, 12)
KINDS = (
    ("categorical", "token"),
    ("empirical", "position"),
    ("empirical", "sequence"),
    ("empirical", "loss_token"),
)


def sequences(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 64, n) for n in LENGTHS]


def plan_for(model_type: str, **changes: object) -> Plan:
    settings: dict[str, object] = {
        "fishers": KINDS,
        "groups_S": np.array([0, 0, 1, 1, 2, 2, 0]),
        "scoring": "sigmoid" if model_type in SIGMOID else "softmax",
        "batch_size": 3,
    }
    return Plan(**{**settings, **changes})  # type: ignore[arg-type]


def one_backward_at_a_time(
    model: torch.nn.Module, paths: list[str], ids: list[np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The oracle: each sequence alone, unpadded, one backward a sequence or a loss token."""
    routers = [model.get_submodule(path) for path in paths]
    weights = [router.weight.requires_grad_(True) for router in routers]
    sums = {path: dict.fromkeys(("position", "sequence", "loss_token"), 0) for path in paths}
    for tokens in ids:
        seen: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

        def keep(module: object, args: tuple, output: tuple, seen: dict = seen) -> None:
            seen[module] = args[0].detach().reshape(-1, args[0].shape[-1]), output[0]

        handles = [router.register_forward_hook(keep) for router in routers]
        ids_1N = torch.tensor(tokens)[None]
        logits = model(input_ids=ids_1N).logits[0]
        for handle in handles:
            handle.remove()
        losses = F.cross_entropy(logits[:-1], ids_1N[0, 1:], reduction="none")
        outputs = [seen[router][1] for router in routers]
        whole = torch.autograd.grad(losses.sum(), [*outputs, *weights], retain_graph=True)
        deltas, gradients = whole[: len(routers)], whole[len(routers) :]
        for path, router, delta, gradient in zip(paths, routers, deltas, gradients, strict=True):
            x = seen[router][0].double()
            sums[path]["position"] += delta.double().square().T @ x.square()
            sums[path]["sequence"] += gradient.double().square()
        for loss in losses:
            of_loss = torch.autograd.grad(loss, weights, retain_graph=True)
            for path, gradient in zip(paths, of_loss, strict=True):
                sums[path]["loss_token"] += gradient.double().square()
    for weight in weights:
        weight.requires_grad_(False)
    return {
        path: {unit: value.numpy() for unit, value in own.items()} for path, own in sums.items()
    }


@pytest.mark.parametrize("model_type", CONFIGS)
def test_fisher_sums_equal_one_backward_at_a_time(
    model_type: str, tiny: Callable[..., Path]
) -> None:
    model = load_model(Checkpoint(tiny(model_type)), CPU, torch.float32)
    routers = find_routers(model)
    ids = sequences()
    result = replay(model, routers, ids, [None] * len(ids), plan_for(model_type))
    assert result.unselected == ("dense" if model_type in DENSE else "zero")
    expected = one_backward_at_a_time(model, [trace.router.path for trace in result.traces], ids)
    assert len(expected) == len(routers)
    for trace in result.traces:
        assert trace.problem is None
        for unit, sums in expected[trace.router.path].items():
            measured, groups, traces = trace.fishers["empirical", unit].totals()
            np.testing.assert_allclose(measured, sums, rtol=1e-4, atol=1e-6 * sums.max())
            np.testing.assert_allclose(groups.sum(0), measured, rtol=1e-12)
            np.testing.assert_allclose(traces.sum(0), measured.sum(-1), rtol=1e-6)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_padding_never_counts(model_type: str, tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny(model_type)), CPU, torch.float32)
    routers = find_routers(model)
    ids = sequences()
    plan = plan_for(model_type, fishers=KINDS[:2])
    alone = replay(
        model, routers, ids, [None] * 7, plan_for(model_type, fishers=KINDS[:2], batch_size=1)
    )
    padded = replay(model, routers, ids, [None] * 7, plan)
    np.testing.assert_allclose(padded.loss_S, alone.loss_S, rtol=1e-5)
    for a, b in zip(alone.traces, padded.traces, strict=True):
        scale = np.abs(a.logits_TE).max()
        np.testing.assert_allclose(a.logits_TE, b.logits_TE, atol=1e-5 * scale)
        assert (np.sort(a.selected_TK, 1) == np.sort(b.selected_TK, 1)).all()
        for key in plan.fishers:
            x, y = a.fishers[key].totals()[0], b.fishers[key].totals()[0]
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6 * x.max())


def test_loss_is_in_nats_of_the_next_token(tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny("mixtral")), CPU, torch.float32)
    ids = sequences()
    result = replay(model, find_routers(model), ids, [None] * 7, plan_for("mixtral"))
    own = [
        float(model(input_ids=torch.tensor(i)[None], labels=torch.tensor(i)[None]).loss)
        for i in ids
    ]
    np.testing.assert_allclose(result.loss_S / result.loss_tokens_S, own, rtol=1e-5)
    assert result.loss_tokens_S.tolist() == [n - 1 for n in LENGTHS]


def test_labels_that_are_ignored_carry_no_loss(tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny("mixtral")), CPU, torch.float32)
    ids = sequences()
    labels = [i.copy() for i in ids]
    for y in labels:
        y[: len(y) // 2] = -100
    result = replay(model, find_routers(model), ids, labels, plan_for("mixtral"))
    assert result.loss_tokens_S.tolist() == [n - max(n // 2, 1) for n in LENGTHS]


def test_without_a_loss_the_pass_ends_at_the_last_router(tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny("mixtral")), CPU, torch.float32)
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    ids = sequences()
    plan = plan_for("mixtral", fishers=KINDS[:1])
    result = replay(model, find_routers(model), ids, [None] * 7, plan)
    assert calls == [1, 1]  # the small batch, which is replayed twice to its end
    assert result.loss_S is None
    full = replay(model, find_routers(model), ids, [None] * 7, plan_for("mixtral"))
    for a, b in zip(result.traces, full.traces, strict=True):
        np.testing.assert_allclose(a.logits_TE, b.logits_TE, rtol=1e-6)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_swapped_weights_equal_a_fresh_load(model_type: str, tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny(model_type, 0)), CPU, torch.float32)
    swapped = swap_weights(model, Checkpoint(tiny(model_type, 1)), CPU)
    assert swapped is model, "transformers' internal conversion has changed: see replay/loading.py"
    fresh = load_model(Checkpoint(tiny(model_type, 1)), CPU, torch.float32).state_dict()
    for name, tensor in swapped.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name


def test_a_misread_router_is_noticed(tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny("mixtral")), CPU, torch.float32)
    router = find_routers(model)[0]
    x = torch.randn(4, 24)
    right = RouterCall(x, x @ router.weight_ED.T, torch.ones(4, 2), torch.zeros(4, 2).long())
    wrong = RouterCall(x, 2 * (x @ router.weight_ED.T), torch.ones(4, 2), torch.zeros(4, 2).long())
    assert verify_call(router, right) is None
    assert "do not equal" in (verify_call(router, wrong) or "")


def test_a_wrong_architecture_fact_is_refused(tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny("olmoe")), CPU, torch.float32)
    ids = sequences()
    with pytest.raises(UnsupportedArchitectureError, match="did not select"):
        replay(model, find_routers(model), ids, [None] * 7, plan_for("olmoe", unselected="zero"))


@pytest.mark.parametrize(
    ("model_type", "experts"),
    [("mixtral", "num_local_experts"), ("gpt_oss", "num_local_experts"),
     ("deepseek_v3", "n_routed_experts")],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_one_expert_divided_by_its_own_weight_has_a_fisher_of_zero(
    model_type: str, experts: str, seed: int, tmp_path: Path
) -> None:
    # Of two experts, rounding reaches the one that was not selected as much as the other.
    groups = {"n_group": 1, "topk_group": 1} if model_type == "deepseek_v3" else {}
    path = save_tiny(
        model_type, tmp_path / "m", seed, **{experts: 2, "num_experts_per_tok": 1, **groups}
    )
    model = load_model(Checkpoint(path), CPU, torch.float32)
    plan = plan_for(model_type, unselected="zero", renormalised=True)
    for trace in replay(model, find_routers(model), sequences(), [None] * 7, plan).traces:
        for unit in ("position", "sequence", "loss_token"):
            assert not trace.fishers["empirical", unit].totals()[0].any()
        assert trace.fishers["categorical", "token"].totals()[0].any()


def test_one_expert_with_its_own_weight_keeps_its_gradient(tmp_path: Path) -> None:
    path = save_tiny("olmoe", tmp_path / "m", num_experts_per_tok=1)
    model = load_model(Checkpoint(path), CPU, torch.float32)
    plan = plan_for("olmoe", unselected="verify", renormalised=True)  # as if the config misled
    for trace in replay(model, find_routers(model), sequences(), [None] * 7, plan).traces:
        assert trace.fishers["empirical", "position"].totals()[0].any(axis=1).all()


@pytest.mark.parametrize("model_type", CONFIGS)
def test_routers_found_equal_the_librarys_count(model_type: str, tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny(model_type)), CPU, torch.float32)
    expected = 2 if model_type in {"qwen3_moe", "deepseek_v3", "glm4_moe"} else 3
    routers = find_routers(model)
    assert len(routers) == expected
    assert [r.layer for r in routers] == list(range(3 - expected, 3))
    assert all(r.top_k == CONFIGS[model_type]["num_experts_per_tok"] for r in routers)
    assert all((r.selection_bias_E is not None) == (model_type in SIGMOID) for r in routers)
