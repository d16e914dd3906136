"""Every finding of `moegeo check`, planted in several architectures, and found with its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from moegeo_cli import check
from tests.commands.check.planting import (
    BIAS,
    State,
    find,
    is_expert,
    is_router,
    load_file,
    names,
    save_file,
    save_run,
)
from tests.tiny_models import save_tiny

TYPES = ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss")
FORMS = ("qwen3_moe", "gpt_oss")  # a tensor an expert; one of all experts
FIRST = {"qwen3_moe": 1, "mixtral": 0, "deepseek_v3": 1, "gpt_oss": 0}  # layer with a router
SAMPLES = Path(__file__).parents[3] / "sample_checkpoints"


def holding(which: Callable[[str], bool], source: int, since: int = 0) -> Callable[..., None]:
    """Tensors that keep an earlier step's bytes from then on."""

    def change(step: int, state: State, earlier: Mapping[int, State]) -> None:
        if step > since:
            for name in filter(which, state):
                state[name] = earlier[source][name].clone()

    return change


@pytest.mark.parametrize("model_type", TYPES)
def test_a_run_that_moves_is_healthy(model_type: str, tmp_path: Path) -> None:
    record = check(save_run(tmp_path, model_type))
    assert record.verdict is not None
    assert (record.verdict.status, names(record)) == ("healthy", set())
    assert record.newest.metrics["experts_moved"].value == 1.0
    assert record.newest.metrics["routers_moved"].value == 1.0


@pytest.mark.parametrize("model_type", FORMS)
def test_frozen_routers_are_named_with_the_step(model_type: str, tmp_path: Path) -> None:
    keep = holding(lambda n: is_router(model_type, n), 0)
    found = find(check(save_run(tmp_path, model_type, change=keep)), "router-frozen")
    assert found is not None
    assert found.severity == "watch"
    assert found.layers == tuple(range(FIRST[model_type], 3))
    assert "every layer" in found.message
    assert "since step 0" in found.message


@pytest.mark.parametrize("model_type", FORMS)
def test_frozen_experts_are_named_with_layers_and_step(model_type: str, tmp_path: Path) -> None:
    keep = holding(lambda n: is_expert(n) and ".layers.2." in n, 100, since=100)
    record = check(save_run(tmp_path, model_type, change=keep))
    found = find(record, "experts-frozen")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (2,))
    assert "all experts of layer 2 since step 100" in found.message
    assert names(record) == {"experts-frozen"}


def test_what_the_config_freezes_is_info(tmp_path: Path) -> None:
    run = save_run(tmp_path, "olmoe", change=holding(lambda n: is_router("olmoe", n), 0))
    for config in run.glob("*/config.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"freeze_router": True}))
    found = find(check(run), "router-frozen")
    assert found is not None
    assert found.severity == "info"
    assert "freeze_router" in found.message


@pytest.mark.parametrize("model_type", FORMS)
def test_experts_of_an_earlier_step_are_a_reset(model_type: str, tmp_path: Path) -> None:
    keep = holding(is_expert, 0, since=100)
    record = check(save_run(tmp_path, model_type, change=keep))
    found = find(record, "experts-reset")
    assert found is not None
    assert (found.severity, found.layers) == ("failing", tuple(range(FIRST[model_type], 3)))
    assert "to step 0" in found.message
    assert record.verdict is not None
    assert record.verdict.status == "failing"
    assert find(record, "router-reset") is None


def test_a_reset_is_resolved_once_training_goes_on_and_its_step_stays(tmp_path: Path) -> None:
    def change(step: int, state: State, earlier: Mapping[int, State]) -> None:
        if step == 200:
            for name in state:
                if is_router("qwen3_moe", name) and ".layers.2." in name:
                    state[name] = earlier[0][name].clone()

    record = check(save_run(tmp_path, "qwen3_moe", (0, 100, 200, 300), change))
    assert find(record, "router-reset") is None
    was = find(record, "router-reset", "resolved")
    assert was is not None
    assert (was.steps, was.layers) == ((200,), (2,))


def test_a_checkpoint_that_is_anothers_copy_is_a_note_and_no_reset(tmp_path: Path) -> None:
    record = check(save_run(tmp_path, "qwen3_moe", change=holding(lambda n: True, 0, since=100)))
    assert names(record) == set()
    assert record.newest.notes == ("every byte of its tensors is the same as at step 0",)


def copy_experts(state: State, pairs: Mapping[int, int], layer: int) -> None:
    for name in list(state):
        for target, source in pairs.items():
            if f".layers.{layer}." in name and f".experts.{target}." in name:
                other = name.replace(f".experts.{target}.", f".experts.{source}.")
                state[name] = state[other].clone()
        if f".layers.{layer}." in name and is_expert(name) and state[name].shape[0] == 6:
            for target, source in pairs.items():
                state[name][target] = state[name][source]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_share_written_twice_is_named_by_its_groups(model_type: str, tmp_path: Path) -> None:
    def change(step: int, state: State, earlier: Mapping[int, State]) -> None:
        if step == 200:
            copy_experts(state, {3: 0, 4: 1, 5: 2}, 2)

    record = check(save_run(tmp_path, model_type, change=change))
    found = find(record, "experts-identical")
    assert found is not None
    assert (found.severity, found.layers, found.steps) == ("watch", (2,), (200,))
    assert "0=3, 1=4, 2=5" in found.message
    assert record.newest.layers[-1].identical == ((0, 3), (1, 4), (2, 5))
    alone = find(check(tmp_path / "checkpoint-200", latest=True), "experts-identical")
    assert alone is not None
    assert alone.severity == "watch"


def test_an_upcycled_start_is_info(tmp_path: Path) -> None:
    def change(step: int, state: State, earlier: Mapping[int, State]) -> None:
        if step == 0:
            for layer in range(3):
                copy_experts(state, dict.fromkeys(range(1, 6), 0), layer)

    run = save_run(tmp_path, "olmoe", change=change)
    found = find(check(run / "checkpoint-0"), "experts-identical")
    assert found is not None
    assert found.severity == "info"
    assert find(check(run), "experts-identical") is None


def test_copies_that_differ_by_less_than_rounding_are_named(tmp_path: Path) -> None:
    path = save_tiny("qwen3_moe", tmp_path / "checkpoint-10")
    state = load_file(path / "model.safetensors")
    for name in list(state):
        if ".layers.1." in name and ".experts.5." in name:
            other = state[name.replace(".experts.5.", ".experts.1.")]
            state[name] = other.bfloat16().float()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    found = find(check(path), "experts-identical")
    assert found is not None
    assert "layer 1: 1=5" in found.message
    assert "up to rounding to bfloat16" in found.message


def test_a_bias_of_zeros_after_the_start_is_unused(tmp_path: Path) -> None:
    def zero(step: int, state: State, earlier: Mapping[int, State]) -> None:
        for name in state:
            if name.endswith(BIAS):
                state[name].zero_()

    run = save_run(tmp_path, "deepseek_v3", change=zero)
    found = find(check(run), "bias-unused")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (1, 2))
    assert "is 0 for all experts" in found.message
    assert found.steps == (100, 200)


def test_a_bias_in_bfloat16_is_rounded_where_that_changes_choices(tmp_path: Path) -> None:
    fine = save_tiny("deepseek_v3", tmp_path / "fine", n_routed_experts=32, n_group=1, topk_group=1)
    state = load_file(fine / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in state:
        if name.endswith(BIAS):
            state[name] = 6.9 + 0.03 * torch.randn(32, generator=generator)
    save_file(state, fine / "model.safetensors", {"format": "pt"})
    assert find(check(fine), "bias-rounded") is None
    for name in state:
        if name.endswith(BIAS):
            state[name] = state[name].bfloat16()
    save_file(state, fine / "model.safetensors", {"format": "pt"})
    found = find(check(fine), "bias-rounded")
    assert found is not None
    assert (found.severity, found.layers) == ("info", (1, 2))
    assert "bfloat16" in found.message
    assert "steps of 0.031" in found.message


@pytest.mark.parametrize(
    ("model_type", "config", "expected"),
    [
        ("qwen3_moe", {"num_experts_per_tok": 1}, (1, 2)),
        ("qwen3_moe", {"num_experts_per_tok": 1, "norm_topk_prob": False}, None),
        ("mixtral", {"num_experts_per_tok": 1}, (0, 1, 2)),
        ("mixtral", {}, None),
    ],
)
def test_one_renormalised_expert_gives_the_router_no_gradient(
    model_type: str, config: dict[str, object], expected: tuple[int, ...] | None, tmp_path: Path
) -> None:
    found = find(check(save_tiny(model_type, tmp_path / "m", **config)), "router-no-gradient")
    assert (None if found is None else found.layers) == expected


def spoil(path: Path, change: Callable[[State], None]) -> Path:
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return path


def test_an_expert_that_is_switched_off_is_masked_and_not_damaged(tmp_path: Path) -> None:
    def mask(state: State) -> None:
        state["model.layers.1.mlp.gate.weight"][3] = -1e9
        for name in state:
            if ".layers.1.mlp.experts.3." in name:
                state[name].zero_()

    record = check(spoil(save_tiny("qwen3_moe", tmp_path / "m"), mask))
    assert names(record) == {"experts-masked"}
    found = find(record, "experts-masked")
    assert found is not None
    assert "expert 3 in layer 1" in found.message
    assert record.newest.layers[0].masked == (3,)


def test_a_bias_of_minus_infinity_masks(tmp_path: Path) -> None:
    def mask(state: State) -> None:
        state["model.layers.2.mlp.gate.e_score_correction_bias"][5] = -torch.inf

    record = check(spoil(save_tiny("deepseek_v3", tmp_path / "m"), mask))
    assert names(record) == {"experts-masked"}


@pytest.mark.parametrize("model_type", TYPES)
def test_damage_is_named_with_its_experts(model_type: str, tmp_path: Path) -> None:
    def damage(state: State) -> None:
        for name in sorted(state):
            tensor = state[name]
            if ".layers.2." not in name or not is_expert(name) or "down_proj" not in name:
                continue
            if "_bias" in name:
                continue
            if ".experts.1." in name:
                tensor[0, 0] = torch.nan
            elif ".experts.4." in name:
                tensor.zero_()
            elif tensor.ndim == 3:
                tensor[1, 0, 0], tensor[4] = torch.nan, 0.0
        if model_type == "mixtral":
            state["model.layers.2.block_sparse_moe.experts.1.w2.weight"][0, 0] = torch.nan
            state["model.layers.2.block_sparse_moe.experts.4.w2.weight"].zero_()

    record = check(spoil(save_tiny(model_type, tmp_path / "m"), damage))
    found = find(record, "experts-damaged")
    assert found is not None
    assert (found.severity, found.layers) == ("failing", (2,))
    assert (
        "expert 1 in layer 2 are NaN or infinite; weights of expert 4 in layer 2 are zeros"
        in found.message
    )


def test_routers_of_nan_and_of_zeros(tmp_path: Path) -> None:
    def damage(state: State) -> None:
        state["model.layers.1.mlp.gate.weight"][2, 0] = torch.inf
        state["model.layers.2.mlp.gate.weight"][:2] = 0.0

    record = check(spoil(save_tiny("qwen3_moe", tmp_path / "m"), damage))
    broken, zero = find(record, "router-nonfinite"), find(record, "router-zero")
    assert broken is not None
    assert zero is not None
    assert (broken.severity, broken.layers) == ("failing", (1,))
    assert (zero.severity, zero.layers) == ("failing", (2,))
    assert "experts 0, 1 in layer 2" in zero.message


@pytest.mark.parametrize("sample", sorted(p.name for p in SAMPLES.glob("*-m*") if p.is_dir()))
def test_the_samples_have_none_of_them(sample: str) -> None:
    record = check(SAMPLES / sample, cache=False)
    assert names(record) == set()
    for checkpoint in record.checkpoints:
        assert checkpoint.verdict is not None
        assert checkpoint.verdict.findings == ()


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "olmoe"])
def test_a_fresh_model_at_step_0_has_none_of_them(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny_models import COMMON, CONFIGS

    config = AutoConfig.for_model(model_type, **{**COMMON, **CONFIGS[model_type]})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "checkpoint-0")
    assert names(check(tmp_path / "checkpoint-0")) == set()


def test_quick_reads_no_expert_and_says_so(tmp_path: Path) -> None:
    keep = holding(lambda n: is_router("mixtral", n) or is_expert(n), 0)
    run = save_run(tmp_path, "mixtral", change=keep)
    quick = check(run, quick=True)
    assert names(quick) == {"router-frozen"}
    assert quick.verdict is not None
    skipped = {c.name: c.reason for c in quick.verdict.checks if c.outcome == "skipped"}
    assert skipped["experts-frozen"] == "the experts' weights were not read"
    assert quick.newest.metrics["expert_norm"].reason == "experts were not read (--quick)"
    assert quick.newest.bytes_read < check(run).newest.bytes_read / 2


def test_experts_of_other_shapes_are_compared_with_their_own_size(tmp_path: Path) -> None:
    """One expert has fewer inner neurons than the others: no distance is told, damage still is."""

    def shrink(state: State) -> None:
        place = "model.layers.1.mlp.experts.4"
        for part in ("gate_proj", "up_proj"):
            state[f"{place}.{part}.weight"] = state[f"{place}.{part}.weight"][:8].clone()
        state[f"{place}.down_proj.weight"] = state[f"{place}.down_proj.weight"][:, :8].clone()
        state["model.layers.1.mlp.experts.2.up_proj.weight"].zero_()

    record = check(spoil(save_tiny("qwen3_moe", tmp_path / "m"), shrink))
    found = find(record, "experts-damaged")
    assert found is not None
    assert "expert 2 in layer 1 are zeros" in found.message
    layer = record.newest.layers[0]
    assert layer.metrics["expert_distance"].reason == "its experts' weights differ in shape"
    assert record.newest.layers[1].metrics["expert_distance"].value is not None


def test_a_bias_of_another_length_is_left_out_with_the_reason(tmp_path: Path) -> None:
    def cut(state: State) -> None:
        state["model.layers.1.mlp.router.bias"] = torch.full((11,), -1e9)

    record = check(spoil(save_tiny("gpt_oss", tmp_path / "m"), cut))
    assert record.newest.layers[1].reasons["bias"] == "it has 11 entries for 6 experts"
