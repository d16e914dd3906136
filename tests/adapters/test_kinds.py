"""Each kind of adapter against peft's own merged weights, tensor by tensor, exactly."""

from __future__ import annotations

import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.effective import EffectiveWeights
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError
from moegeo_cli.models.tree import trace_tree
from tests.adapters.files import ATTENTION, EXPERTS, ROUTERS, Written, beside, edit, write
from tests.tiny_models import build_tiny

BOTH = {
    "target_modules": ["q_proj", "o_proj"],
    "target_parameters": [*ROUTERS["target_parameters"], *EXPERTS["target_parameters"]],
}
MORE = ("mixtral", "qwen2_moe", "olmoe", "granitemoe", "deepseek_v3", "glm4_moe")
KINDS: dict[str, dict[str, Any]] = {
    "all at once": BOTH,
    "one of two parameters": {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    "rank and alpha by pattern": {
        **BOTH,
        "rank_pattern": {"o_proj": 2, "experts.down_proj": 3, "layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {r"layers\.[12]\.mlp\.gate.weight": 9, "q_proj": 1.5},
    },
    "rslora": {**BOTH, "use_rslora": True},
    "some layers": {**ATTENTION, "layers_to_transform": [1]},
    "modules to save": {**ATTENTION, "modules_to_save": ["lm_head", "gate"]},
    "whole experts to save": {**ATTENTION, "modules_to_save": ["experts"]},
    "dora": {**ATTENTION, "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "lm_head"]},
    "trained biases": {**ATTENTION, "bias": "all"},
    "biases of targets": {**ATTENTION, "bias": "lora_only"},
}


def opened(path: Path, base: Path) -> EffectiveWeights:
    checkpoint = Checkpoint(path, given_config=base)
    checkpoint.weights.resolve(partial(trace_tree, checkpoint))
    return checkpoint.weights


def assert_merged(index: EffectiveWeights, files: Written, **near: float) -> None:
    want, plain = (load_file(p / "model.safetensors") for p in (files.merged, files.base))
    assert set(index.names()) == set(want)
    assert any(not torch.equal(want[name], plain[name]) for name in want)
    limits = {"rtol": 1e-6, "atol": 1e-6, **near}
    for name, values in want.items():
        found = index.tensor(name)
        assert found.dtype == values.dtype == plain[name].dtype
        torch.testing.assert_close(found, values, **limits, msg=lambda m, n=name: f"{n}: {m}")
        if values.ndim > 1 and len(values) > 3:
            part = index.tensor(name, (1, 4))
            torch.testing.assert_close(part, found[1:4], rtol=1e-6, atol=1e-6)
        assert torch.equal(index.without_adapter(name), plain[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind(kind: str, tmp_path: Path) -> None:
    changes = {"attention_bias": True} if "biases" in kind else {}
    files = write(tmp_path, "qwen3_moe", changes=changes, **KINDS[kind])
    assert_merged(opened(files.adapter, files.base), files)


@pytest.mark.parametrize(
    "model_type",
    ["gpt_oss", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)],
)
def test_a_family(model_type: str, tmp_path: Path) -> None:
    options = {**BOTH, "target_modules": ["q_proj", "o_proj", "q_a_proj"]}
    files = write(tmp_path, model_type, **options)
    assert_merged(opened(files.adapter, files.base), files)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_half_precision_is_rounded_as_peft_rounds(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    files = write(tmp_path, "qwen3_moe", dtype=dtype, **BOTH)
    index = opened(files.adapter, files.base)
    want = load_file(files.merged / "model.safetensors")
    names = [name for name in want if want[name].ndim > 1]
    other = sum(int((index.tensor(name) != want[name]).sum()) for name in names)
    assert other <= 3  # products at the middle between two values, summed in another order
    assert_merged(index, files, rtol=2**-7, atol=1e-3)


def test_a_pickled_adapter(tmp_path: Path) -> None:
    files = write(tmp_path, "qwen3_moe", **BOTH)
    both = beside(files, tmp_path / "both")
    torch.save(load_file(both / "adapter_model.safetensors"), both / "adapter_model.bin")
    (both / "adapter_model.safetensors").unlink()
    assert_merged(opened(both, files.base), files)


def unmerged(folder: Path, prefix: str, model_type: str = "qwen3_moe", **options: Any) -> Written:
    """A model with its adapter in it, saved by its own state dict under a wrapper's names."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    files = write(folder, model_type, **options)
    model = AutoModelForCausalLM.from_pretrained(files.base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = PeftModel.from_pretrained(model, files.adapter).state_dict()
    wrapped = folder / "wrapped"
    wrapped.mkdir()
    shutil.copy(files.base / "config.json", wrapped)
    shutil.copy(files.adapter / "adapter_config.json", wrapped)
    tensors = {name.replace("base_model.", prefix, 1): t.clone() for name, t in state.items()}
    save_file(tensors, wrapped / "model.safetensors")
    return Written(files.base, wrapped, files.merged)


@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("base_model.", ATTENTION),
        ("module._orig_mod.base_model.", BOTH),
        ("base_model.", {**ATTENTION, "modules_to_save": ["lm_head", "gate"]}),
        ("_orig_mod.base_model.", {**ATTENTION, "use_dora": True}),
    ],
)
def test_an_adapter_within_the_weights(
    prefix: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from moegeo_cli.models.loading import load_model

    files = unmerged(tmp_path, prefix, **options)
    device = torch.device("cpu")
    have, want = (
        load_model(Checkpoint(path), device, torch.float32).state_dict()
        for path in (files.adapter, files.merged)
    )
    assert set(have) == set(want)
    for name, values in want.items():
        torch.testing.assert_close(have[name], values, rtol=1e-6, atol=1e-6)


def test_an_adapter_within_the_weights_needs_its_config(tmp_path: Path) -> None:
    files = unmerged(tmp_path, "base_model.", **ATTENTION)
    (files.adapter / "adapter_config.json").unlink()
    with pytest.raises(IncompleteCheckpointError, match="adapter_config"):
        opened(files.adapter, files.base)
    tensors = load_file(files.adapter / "model.safetensors")
    more = {n.replace(".default.", ".second."): t + 1 for n, t in tensors.items() if "lora_" in n}
    save_file({**tensors, **more}, files.adapter / "model.safetensors")
    with pytest.raises(UnsupportedLayoutError, match="several adapters"):
        opened(files.adapter, files.base)


def test_experts_one_by_one_as_older_transformers_named_them(tmp_path: Path) -> None:
    """Before experts were fused, peft wrapped each expert's Linear, and the router's."""
    base = tmp_path / "base"
    model = build_tiny("qwen3_moe")
    model.save_pretrained(base)
    plain = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    tensors, want = {}, dict(plain)
    for name, weight in plain.items():
        if ".experts." in name or name.endswith(".gate.weight"):
            a, b = (0.2 * torch.randn(s, generator=generator)
                    for s in ((4, weight.shape[1]), (weight.shape[0], 4)))  # fmt: skip
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            want[name] = weight + 2.0 * b @ a
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    for folder in (adapter, merged):
        folder.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text("{}")
    edit(adapter, peft_type="LORA", r=4, lora_alpha=8, base_model_name_or_path=str(base))
    save_file(want, merged / "model.safetensors")
    assert_merged(opened(adapter, base), Written(base, adapter, merged))
