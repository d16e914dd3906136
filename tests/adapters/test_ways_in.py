"""Adapters on every other way in: lenses, captures, quantised bases, models of one's own."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moegeo_cli import analyze, capture_routers, check, experts, inspect, routing
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import UnsupportedLayoutError
from moegeo_cli.models.loading import load_model
from moegeo_cli.models.tree import trace_tree
from tests.adapters.files import ATTENTION, EXPERTS, ROUTERS, beside, edit, randomise, write
from tests.adapters.test_adapters import measure, numbers
from tests.end_to_end.test_uneven_layers import prune
from tests.tiny_models import save_tiny

FORMS = Path(__file__).parents[1] / "forms" / "files"
BOTH = {
    "target_modules": ["q_proj"],
    "target_parameters": [*ROUTERS["target_parameters"], *EXPERTS["target_parameters"]],
}
CPU = torch.device("cpu")


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.jsonl"
    rows = torch.randint(0, 48, (4, 20), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


def of(layer: Any) -> dict[str, float]:
    return {name: m.value for name, m in layer.metrics.items() if m.value is not None}


def test_the_lenses(tmp_path: Path, probe: Path) -> None:
    files = write(tmp_path, "qwen3_moe", **BOTH)
    options: dict[str, Any] = {"probe": probe, "cache": False, "dtype": "float32"}
    paths = ((files.merged, False), (files.adapter, False), (files.adapter, True))
    found = [experts(path, **options, stream=stream) for path, stream in paths]
    for layers in zip(*(record.layers for record in found), strict=True):
        values = [of(layer) for layer in layers]
        for other in values[1:]:
            assert other == pytest.approx(values[0], rel=1e-4, abs=1e-6)
    pair = routing(files.adapter, files.merged, **options)
    assert pair.status == "complete"


def test_captured_inputs(tmp_path: Path) -> None:
    files = write(tmp_path, "qwen3_moe", **ROUTERS)
    model = load_model(Checkpoint(files.merged), CPU, torch.float32)
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), capture_routers(model, tmp_path / "captures.safetensors"):
        model(input_ids=ids, use_cache=False)
    found = [
        analyze(path, captures=tmp_path / "captures.safetensors", cache=False, baseline="none")
        for path in (files.merged, files.adapter)
    ]
    for want, have in zip(*(run.checkpoints[0].layers for run in found), strict=True):
        assert of(have)
        assert of(have) == pytest.approx(of(want), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["bitsandbytes-nf4", "compressed-fp8-block"])
def test_a_quantised_base(name: str, tmp_path: Path, probe: Path) -> None:
    """Merged onto the values that the quantised tensors stand for."""
    index = Checkpoint(FORMS / name).weights
    plain = {n: index.tensor(n).contiguous() for n in index.names() if "_scale" not in n}
    twin = tmp_path / "twin"
    twin.mkdir()
    config = json.loads((FORMS / name / "config.json").read_text())
    config.pop("quantization_config", None)
    (twin / "config.json").write_text(json.dumps(config))
    save_file({n: t.float() for n, t in plain.items()}, twin / "model.safetensors")
    files = write(tmp_path, "", base=twin, **ATTENTION)
    adapter = tmp_path / "of-quantised"
    shutil.copytree(files.adapter, adapter)
    edit(adapter, base_model_name_or_path=str(FORMS / name))
    want, have = (numbers(measure(path, probe).checkpoints[0]) for path in (files.merged, adapter))
    assert have == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)


def test_experts_of_equal_sides(tmp_path: Path) -> None:
    """What a square's inputs are is said by the model; before 0.19, peft took the first side."""
    sizes = {"moe_intermediate_size": 24, "hidden_size": 24}
    files = write(tmp_path, "qwen3_moe", changes=sizes, **EXPERTS)
    want = load_file(files.merged / "model.safetensors")
    plain = load_file(files.base / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.down_proj.weight"

    def read() -> torch.Tensor:
        checkpoint = Checkpoint(files.adapter)
        checkpoint.weights.resolve(partial(trace_tree, checkpoint))
        values: torch.Tensor = checkpoint.weights.tensor(name)
        return values

    torch.testing.assert_close(read(), want[name])
    tensors = load_file(files.adapter / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.mlp.experts.lora_{}.weight"
    a, b = tensors[key.format("A")], tensors[key.format("B")]
    old = torch.einsum("ore,eri->eio", b.reshape(24, 4, 6), a.reshape(6, 4, 24)) * 1.5
    for version in ("0.18.1", None):
        edit(files.adapter, peft_version=version)
        torch.testing.assert_close(read(), plain[name] + old[2])


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_layers_with_different_numbers_of_experts(model_type: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = prune(save_tiny(model_type, tmp_path / "base"), {1: (0, 2, 3, 5), 2: (4, 1, 0, 3, 2)})
    model = load_model(Checkpoint(base), CPU, torch.float32)
    tuned: Any = get_peft_model(model, LoraConfig(r=4, **BOTH))  # type: ignore[arg-type]
    randomise(tuned, 2)
    adapter = tmp_path / "adapter"
    tuned.save_pretrained(adapter)
    edit(adapter, base_model_name_or_path=str(base))
    want = tuned.merge_and_unload().state_dict()
    have = load_model(Checkpoint(adapter, given_config=base), CPU, torch.float32).state_dict()
    assert set(have) == set(want)
    for name, values in want.items():
        torch.testing.assert_close(have[name], values, rtol=1e-5, atol=1e-6)
    found = inspect(adapter)
    assert found.problem is None
    moves = [m for m in found.weights["adapter"]["moves"] if m["part"] == "experts"]
    assert [m["of"] for m in moves][-2:] == [4, 5]
    quick = check(adapter, cache=False)
    assert quick.checkpoints[0].coverage.routers_found == len(quick.checkpoints[0].layers)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_tied_embeddings(module: str, tmp_path: Path) -> None:
    files = write(
        tmp_path, "qwen3_moe", changes={"tie_word_embeddings": True}, target_modules=[module]
    )
    with pytest.raises(UnsupportedLayoutError, match=r"uses twice|fits no weight"):
        load_model(Checkpoint(files.adapter, given_config=files.base), CPU, torch.float32)


class Block(nn.Module):
    """Two experts and their router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        every = torch.stack([expert(x) for expert in self.experts], -2)
        picked = every.gather(-2, chosen[..., None].expand(*chosen.shape, 16))
        return x + (weights[..., None] * picked).sum(-2)


class Own(nn.Module):
    """A language model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 64)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(x)
        return found


def build(config: Any) -> nn.Module:
    return Own()


def build_tuned(config: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(Own(), LoraConfig(r=4, target_modules=["router"]))  # type: ignore[arg-type]


def test_a_model_of_ones_own(tmp_path: Path, probe: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = Own()
    folder, merged, within = tmp_path / "own", tmp_path / "merged.pt", tmp_path / "within.pt"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")
    config = LoraConfig(r=4, target_modules=["router", "experts.1"])
    tuned: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    randomise(tuned, 4)
    tuned.save_pretrained(folder)
    torch.save(tuned.merge_and_unload().state_dict(), merged)
    tuned = build_tuned(None)
    torch.save(tuned.state_dict(), within)
    options: dict[str, Any] = {"router": "blocks.*.router", "top_k": 2, "scoring": "softmax"}
    have, want = (numbers(measure(path, probe, model=build, **options).checkpoints[0])
                  for path in (folder, merged))  # fmt: skip
    assert have == pytest.approx(want, rel=1e-5, abs=1e-7, nan_ok=True)
    options["router"] = "re:.*router$"
    measure(within, probe, model=build_tuned, **options)  # the factory has its adapter itself
    (folder / "model.pt").unlink()
    with pytest.raises(UnsupportedLayoutError, match="model of your own"):
        measure(folder, probe, model=build, **options)


def test_transformers_lets_a_trained_adapter_alone(tmp_path: Path, probe: Path) -> None:
    """Where --device-map places parts, transformers loads; it must not look at the adapter."""
    files = write(tmp_path, "qwen3_moe", **ATTENTION)
    both = beside(files, tmp_path / "both")
    want = numbers(measure(files.merged, probe).checkpoints[0])
    have = numbers(measure(both, probe, device_map="cpu").checkpoints[0])
    assert have == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)
