"""The same findings in every layout and stored form, and none in a run that trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moegeo_cli import check
from tests.commands.check.planting import (
    State,
    find,
    is_expert,
    is_router,
    load_file,
    names,
    save_file,
    save_run,
)
from tests.commands.check.test_findings import holding
from tests.sharding import save_state
from tests.tiny_models import build_tiny

FORMS = Path(__file__).parents[2] / "forms" / "files"


def pickled(path: Path, state: State) -> None:
    torch.save(state, path / "pytorch_model.bin")


def sharded(path: Path, state: State) -> None:
    names_ = sorted(state)
    parts = (names_[::2], names_[1::2])
    table = {}
    for place, part in enumerate(parts, 1):
        file = f"model-0000{place}-of-00002.safetensors"
        save_file({n: state[n] for n in part}, path / file, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": table}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def distributed(path: Path, state: State) -> None:
    save_state({"model": state}, path / "pytorch_model_fsdp_0")


LAYOUTS: dict[str, Callable[[Path, State], None]] = {
    "pickled": pickled, "sharded": sharded, "distributed": distributed,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_findings_and_numbers(layout: str, tmp_path: Path) -> None:
    keep = holding(lambda n: is_router("qwen3_moe", n) or ".layers.2.mlp.experts." in n, 0)
    plain = save_run(tmp_path / "plain", "qwen3_moe", change=keep)
    other = tmp_path / layout
    shutil.copytree(plain, other)
    for checkpoint in other.glob("checkpoint-*"):
        file = checkpoint / "model.safetensors"
        state = load_file(file)
        file.unlink()
        LAYOUTS[layout](checkpoint, state)
    one, two = check(plain, cache=False), check(other, cache=False)
    assert names(one) == names(two) == {"router-frozen", "experts-frozen"}
    for name in names(one):
        assert find(one, name) == find(two, name)
    for a, b in zip(one.newest.layers, two.newest.layers, strict=True):
        assert a == b


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_a_run_in_bfloat16_of_twenty_checkpoints_is_healthy(
    model_type: str, tmp_path: Path
) -> None:
    model = build_tiny(model_type).bfloat16()
    generator = torch.Generator().manual_seed(1)
    for step in range(0, 1000, 50):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (0.01 * noise).to(parameter.dtype)
    record = check(tmp_path)
    assert len(record.checkpoints) == 20
    for checkpoint in record.checkpoints:
        assert checkpoint.verdict is not None
        assert [f.name for f in checkpoint.verdict.findings] == []


def test_a_run_that_trains_is_healthy(tmp_path: Path) -> None:
    """Twenty saves of a real training: adam, weight decay, top-2 of six experts."""
    torch.manual_seed(0)
    model = build_tiny("mixtral", router_aux_loss_coef=0.01, output_router_logits=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    ids = torch.randint(0, 64, (8, 24))
    for step in range(20):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    record = check(tmp_path)
    for checkpoint in record.checkpoints:
        assert checkpoint.verdict is not None
        assert [f.name for f in checkpoint.verdict.findings] == []


@pytest.mark.parametrize(
    "path", sorted(p for p in FORMS.iterdir() if p.is_dir()), ids=lambda p: p.name
)
def test_equal_experts_are_found_in_their_stored_form(path: Path, tmp_path: Path) -> None:
    """Weights, scales and whatever else belongs to an expert are another's."""
    copy = tmp_path / "checkpoint-7"
    shutil.copytree(path, copy)
    whole = check(copy, cache=False)
    assert names(whole) <= {"bias-rounded"}
    [file] = copy.glob("*.safetensors")
    state = load_file(file)
    own = [n for n in state if ".experts.0." in n]
    fused = [n for n in state if ".experts." in n and state[n].ndim == 3]
    assert own or fused
    for name in own:
        state[name.replace(".experts.0.", ".experts.1.")] = state[name].clone()
    for name in fused:
        state[name][1] = state[name][0]
    save_file(state, file, safe_open(copy / file.name, "pt").metadata())
    record = check(copy, cache=False)
    found = find(record, "experts-identical")
    assert found is not None
    assert found.layers == tuple(x.layer for x in whole.newest.layers)
    assert all(x.identical == ((0, 1),) for x in record.newest.layers)


def test_frozen_experts_of_a_quantised_run_are_found(tmp_path: Path) -> None:
    source = next(p for p in sorted(FORMS.iterdir()) if "fp8" in p.name and p.is_dir())
    for step in (0, 100):
        shutil.copytree(source, tmp_path / f"checkpoint-{step}")
    file = next((tmp_path / "checkpoint-100").glob("*.safetensors"))
    state = load_file(file)
    moved = [n for n in state if not is_expert(n) and state[n].dtype == torch.float32]
    for name in moved or [n for n in state if "norm" in n]:
        state[name] = state[name] + 0.25
    save_file(state, file, {"format": "pt"})
    assert "experts-frozen" in names(check(tmp_path))
