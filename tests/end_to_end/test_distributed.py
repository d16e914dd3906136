"""Runs saved by torch.distributed.checkpoint, against the same weights saved by transformers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.models.loading import load_model, swap_weights
from moegeo_cli.probes.tokenizing import tokenizer_sha256
from tests.end_to_end.conftest import Outcome
from tests.probes.conftest import CORPUS, save_tokenizer
from tests.sharding import TYPES, save_fsdp, save_ranks, save_state
from tests.tiny_models import build_tiny

CPU = torch.device("cpu")


def numbers(document: Any) -> Any:
    """A report without what must differ: fingerprints, paths, the layout, the names of runs."""
    other = {"fingerprint", "path", "layout", "measurements", "key"}
    if isinstance(document, dict):
        return {k: numbers(v) for k, v in document.items() if k not in other}
    if isinstance(document, list):
        return [numbers(item) for item in document]
    return document


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_save_pretrained(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    ranks = save_ranks(tmp_path / "ranks")
    options = ("--probe", probe, "--format", "json", "--baseline", "none")
    for model_type in TYPES:
        plain, sharded = (tmp_path / n / model_type / "checkpoint-3" for n in ("plain", "sharded"))
        shutil.copytree(tiny(model_type), plain)
        shutil.copytree(ranks / model_type, sharded)
        expected = moegeo("analyze", plain, *options)
        lost = moegeo("analyze", sharded, *options)
        assert (lost.code, "--config" in lost.err) == (2, True)
        found = moegeo("analyze", sharded, *options, "--config", plain)
        assert expected.code == found.code == 0, found.err
        assert found.document["run"]["layout"] == "torch-distributed"
        assert numbers(found.document) == numbers(expected.document), model_type
        own = ("--probe", probe, "--format", "json", "--rank", 2)
        alike = moegeo("experts", plain, *own), moegeo("experts", sharded, *own, "--config", plain)
        assert alike[1].code == 0, alike[1].err
        assert numbers(alike[0].document) == numbers(alike[1].document), model_type
    index = open_weights(ranks / "titan")
    state = torch.load(ranks / "titan.pt", weights_only=True)
    assert set(index.names()) == set(state)
    assert set(index.left_out) == {"optimizer", "train_state"}
    for name, tensor in state.items():
        np.testing.assert_array_equal(index.read(name), tensor.numpy())


def test_a_run_is_measured_compared_and_rewritten(
    probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    for step in (0, 10):
        model = build_tiny("qwen2_moe", seed=step)
        save_fsdp(model, tmp_path / "fsdp" / f"checkpoint-{step}")
        model.save_pretrained(tmp_path / "plain" / f"checkpoint-{step}")
    model.config.save_pretrained(tmp_path / "fsdp")
    options = ("--probe", probe, "--format", "json")
    expected, found = (moegeo("analyze", tmp_path / n, *options) for n in ("plain", "fsdp"))
    assert found.code == 0, found.err
    ours, theirs = (numbers(outcome.document["checkpoints"]) for outcome in (found, expected))
    assert ours == theirs
    assert moegeo("analyze", tmp_path / "fsdp", *options).out == found.out
    both = moegeo("compare", tmp_path / "fsdp", tmp_path / "plain", *options)
    assert both.code == 0, both.err
    kept = moegeo("invariance", tmp_path / "fsdp", *options)
    assert kept.code == 0, kept.err
    assert all(entry["held"] for entry in kept.document["invariance"] if entry["applicable"])


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_names_of_the_saved_form_load_too(
    model_type: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    for seed in (0, 1):
        state = load_file(tiny(model_type, seed) / "model.safetensors")
        save_state(state, tmp_path / str(seed))  # with a tensor for each expert
        shutil.copy(tiny(model_type) / "config.json", tmp_path / str(seed))
    tokens = torch.arange(20)[None]
    model = load_model(Checkpoint(tmp_path / "0"), CPU, torch.float32)
    assert torch.equal(model(tokens).logits, build_tiny(model_type, 0)(tokens).logits)
    swapped = swap_weights(model, Checkpoint(tmp_path / "1"), CPU)
    assert swapped is model
    assert torch.equal(swapped(tokens).logits, build_tiny(model_type, 1)(tokens).logits)


def test_a_tensor_that_is_missing_is_never_a_random_one(
    tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    model = build_tiny("mixtral")
    for lost in ("model.layers.1.mlp.gate.weight", "model.layers.2.mlp.experts.down_proj"):
        state = {name: t for name, t in model.state_dict().items() if name != lost}
        save_state({"model": state}, tmp_path / lost / "checkpoint-1")
        model.config.save_pretrained(tmp_path / lost / "checkpoint-1")
        outcome = moegeo("analyze", tmp_path / lost, "--probe", probe)
        assert outcome.code == 2
        assert lost in outcome.err


def test_the_tokenizer_may_lie_with_the_config(
    tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    model = build_tiny("mixtral", vocab_size=300)
    save_fsdp(model, tmp_path / "run" / "checkpoint-1")
    base = tmp_path / "base"
    model.config.save_pretrained(base)
    words = tmp_path / "words.txt"
    words.write_text("\n\n".join(CORPUS * 8))
    command = ("analyze", tmp_path / "run", "--probe", words, "--format", "json", "--config", base)
    lost = moegeo(*command)
    assert (lost.code, "no tokenizer" in lost.err) == (2, True)
    save_tokenizer(base)
    found = moegeo(*command)
    assert found.code == 0, found.err
    assert found.document["probe"]["tokenizer"] == tokenizer_sha256(base)


# -- torchtitan's names, by version, as its own adapters map them

TITAN = [
    ("mlp.experts.gate_up_proj", "moe.experts.w1", "moe.experts.w3"),
    ("mlp.experts.down_proj", "moe.experts.w2"),
    ("mlp.shared_experts.gate_proj.", "moe.shared_experts.w1."),
    ("mlp.shared_experts.up_proj.", "moe.shared_experts.w3."),
    ("mlp.shared_experts.down_proj.", "moe.shared_experts.w2."),
    ("mlp.gate.weight", "moe.router.gate.weight"),
    ("mlp.gate.e_score_correction_bias", "moe.expert_bias"),
    ("mlp.gate_proj.", "feed_forward.w1."),
    ("mlp.up_proj.", "feed_forward.w3."),
    ("mlp.down_proj.", "feed_forward.w2."),
    ("input_layernorm.", "attention_norm."),
    ("post_attention_layernorm.", "ffn_norm."),
    ("self_attn.kv_a_proj_with_mqa.", "attention.wkv_a."),
    ("self_attn.kv_a_layernorm.", "attention.kv_norm."),
    ("self_attn.kv_b_proj.", "attention.wkv_b."),
    ("self_attn.q_a_proj.", "attention.wq_a."),
    ("self_attn.q_a_layernorm.", "attention.q_norm."),
    ("self_attn.q_b_proj.", "attention.wq_b."),
    ("self_attn.q_proj.", "attention.wq."),
    ("self_attn.k_proj.", "attention.wk."),
    ("self_attn.v_proj.", "attention.wv."),
    ("self_attn.o_proj.", "attention.wo."),
    ("self_attn.q_norm.", "attention.q_norm."),
    ("self_attn.k_norm.", "attention.k_norm."),
]
NEWER = [
    (r"moe\.experts\.w([13])", r"moe.routed_experts.inner_experts.w\1_EFD"),
    (r"moe\.experts\.w2", "moe.routed_experts.inner_experts.w2_EDF"),
    (r"moe\.expert_bias", "moe.expert_bias_E"),
    (r"^output\.", "lm_head."),
]
NEWER_QWEN = [(r"attention\.w([qkv])\.", r"attention.qkv_linear.w\1.")]


def as_torchtitan(model: Any, newer: bool) -> dict[str, torch.Tensor]:
    """A model's tensors under the names that torchtitan has for them."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("model.")
        own = own.replace("embed_tokens.", "tok_embeddings.").replace("lm_head.", "output.")
        start, targets = own, [own]
        for ours, *theirs in TITAN:
            if ours in start:
                targets = [start.replace(ours, their) for their in theirs]
                break
        for target, part in (
            zip(targets, tensor.chunk(len(targets), dim=1), strict=True)
            if (len(targets) > 1)
            else [(targets[0], tensor)]
        ):
            state[target] = part.contiguous()
    if newer:
        extra = NEWER_QWEN if model.config.model_type == "qwen3_moe" else []
        for pattern, replacement in [*NEWER, *extra]:
            state = {re.sub(pattern, replacement, name): t for name, t in state.items()}
    return state


@pytest.mark.parametrize("newer", [False, True], ids=["0.2", "0.3"])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}], ids=["q_lora", "no q_lora"])
def test_torchtitans_deepseek_gives_the_same_logits(
    newer: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = build_tiny("deepseek_v3", **changes)
    state = {**as_torchtitan(model, newer), "mtp_layers.0.enorm.weight": torch.ones(3)}
    assert_same_logits(model, {**state, "optimizer": {"state": {}}}, tmp_path / "step-1")


@pytest.mark.parametrize("newer", [False, True], ids=["0.2", "0.3"])
def test_torchtitans_qwen_gives_the_same_logits(newer: bool, tmp_path: Path) -> None:
    model = build_tiny("qwen3_moe")
    state = as_torchtitan(model, newer)
    bias = {f"layers.1.moe.expert_bias{'_E' if newer else ''}": torch.zeros(6)}
    assert_same_logits(model, {**state, **bias}, tmp_path / "step-1")


def assert_same_logits(model: Any, state: dict[str, Any], folder: Path) -> None:
    assert "tok_embeddings.weight" in state
    save_state(state, folder)
    model.config.save_pretrained(folder.parent)
    assert set(open_weights(folder).names()) == set(model.state_dict())
    tokens = torch.arange(20)[None]
    loaded = load_model(Checkpoint(folder, given_config=folder.parent), CPU, torch.float32)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_what_torchtitan_selects_with_and_transformers_cannot_is_refused(
    tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    model = build_tiny("qwen3_moe")
    bias = {"layers.1.moe.expert_bias_E": torch.full((6,), 0.01)}
    save_state({**as_torchtitan(model, True), **bias}, tmp_path / "step-1")
    model.config.save_pretrained(tmp_path)
    outcome = moegeo("analyze", tmp_path, "--probe", probe)
    assert outcome.code == 2
    assert "selection bias" in outcome.err


def test_a_family_of_torchtitan_without_a_map_is_listed_and_refused(
    tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    model = build_tiny("qwen3_moe")
    strange = {"layers.0.attention.sinks": torch.ones(4)}
    save_state({**as_torchtitan(model, True), **strange}, tmp_path / "step-1")
    model.config.save_pretrained(tmp_path)
    seen = moegeo("inspect", tmp_path, "--format", "json")
    assert seen.code == 0, seen.err
    assert "MG-E013" in seen.document["problem"]
    assert [r["router"] for r in seen.document["routers"]] == [
        f"layers.{layer}.moe.router.gate.weight" for layer in (1, 2)
    ]
    outcome = moegeo("analyze", tmp_path, "--probe", probe)
    assert outcome.code == 2
    assert "attention.sinks" in outcome.err
    assert "convert_to_hf.py" in outcome.err


def test_a_config_of_another_model_than_torchtitans_names(tmp_path: Path) -> None:
    save_state(as_torchtitan(build_tiny("qwen3_moe"), True), tmp_path / "step-1")
    build_tiny("olmoe").config.save_pretrained(tmp_path)
    with pytest.raises(Exception, match="is for model type olmoe"):
        load_model(Checkpoint(tmp_path / "step-1", given_config=tmp_path), CPU, torch.float32)
