"""`moegeo routing` on what no library's checkpoint holds: captures, own models, sharded saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moegeo_cli import capture_routers, routing
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.errors import UsageError
from moegeo_cli.records import Metric
from moegeo_cli.reports import json_report
from tests.command import call
from tests.end_to_end.conftest import Outcome, random_ids, write_probe
from tests.own_models import models
from tests.sharding import save_fsdp
from tests.tiny_models import build_tiny

LENGTHS = [6 + (5 * i) % 13 for i in range(20)]
OWN = {"router": "blocks.*.gate", "top_k": models.CHOSEN}


def assert_alike(one: RoutingRecord, other: RoutingRecord, but: tuple[str, ...] = ()) -> None:
    assert len(one.layers) == len(other.layers) > 0
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.router == b.router
        for name, metric in a.metrics.items():
            if name.startswith(but):
                continue
            same(b.metrics[name], metric, name)
        for g, h in zip(a.geometry, b.geometry, strict=True):
            assert (g.pairs, g.hidden, g.usage) == (h.pairs, h.hidden, h.usage)
            assert g.spearman.n == h.spearman.n
            same(h.spearman, g.spearman, f"{g.hidden}/{g.usage}")


def same(found: Metric, expected: Metric, name: str) -> None:
    assert (found.value is None) == (expected.value is None), name
    if expected.value is not None:
        assert found.value == pytest.approx(expected.value, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_captures_give_what_a_replay_gives_but_for_token_ids(
    model_type: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    here, ids = tiny(model_type), random_ids(LENGTHS)
    full = routing(here, probe=write_probe(tmp_path / "p.jsonl", ids), cache=False)
    model = AutoModelForCausalLM.from_pretrained(here).eval()
    with torch.no_grad(), capture_routers(model, tmp_path / "c.safetensors") as taken:
        for sequence in ids:
            model(input_ids=torch.tensor([sequence]), use_cache=False)
    assert taken.problem is None
    record = routing(here, captures=tmp_path / "c.safetensors", cache=False, generate=2)
    assert_alike(full, record, ("vocabulary",))
    for layer in record.layers:
        assert "token" in (layer.metrics["vocabulary_overlap"].reason or "")
        assert not any(name.startswith("generated") for name in layer.metrics)
    assert any(note.startswith("--generate: ") for note in record.notes)
    beside = routing(here, here, captures=tmp_path / "c.safetensors", cache=False).other
    assert beside is not None
    assert beside.lineage is None
    assert "no model was built" in beside.lineage_reason
    assert all(p.metrics["mantel"].value == pytest.approx(1) for p in beside.layers)
    with pytest.raises(UsageError, match="replace the probe"):
        routing(here, captures=tmp_path / "c.safetensors", probe=tmp_path / "p.jsonl")


def save_own(scoring: str, folder: Path, seed: int = 0) -> Any:
    model = models.spread(models.Causal(scoring), seed).eval()
    folder.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, folder / "weights.pt")
    return model


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_model_of_ones_own(scoring: str, tmp_path: Path) -> None:
    """Softmax centres the rows of its router; a sigmoid's are taken as they are."""
    model = save_own(scoring, tmp_path / "run")
    ids = random_ids(LENGTHS, vocabulary=models.VOCABULARY)
    file = write_probe(tmp_path / "p.jsonl", ids)
    options: dict[str, Any] = {**OWN, "scoring": scoring, "probe": file, "cache": False}
    record = routing(
        tmp_path / "run", model=f"tests.own_models.models:{scoring}", generate=2, **options
    )
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for place, block in enumerate(model.blocks):
        block.gate.register_forward_hook(lambda _, a, o, p=place: seen[p].append(a[0][0]))
    with torch.no_grad():
        for sequence in ids:
            model(torch.tensor([sequence]))
    for place, layer in enumerate(record.layers):
        x = torch.cat(seen[place]).double()
        weight = model.blocks[place].gate.weight.detach().double()
        weight = weight - weight.mean(0) if scoring == "softmax" else weight
        logits = x @ weight.T
        expected = logits.mean(0).square().sum() / logits.square().sum(1).mean()
        found = layer.metrics["constant_share"].value
        assert found == pytest.approx(float(expected), rel=1e-4)
        chosen = F.one_hot(logits.topk(2).indices, models.EXPERTS).sum(1)
        load = chosen.double().mean(0) / 2
        chance = layer.metrics["overlap_chance"].value
        pairs = len(x) * (len(x) - 1)
        own = float((chosen.sum(0).double().square().sum() - 2 * len(x)) / (2 * pairs))
        assert chance == pytest.approx(own, rel=1e-6)
        assert layer.metrics["overlap_unrelated"].value == pytest.approx(
            float(2 * load.square().sum()), abs=0.05
        )
    both = routing(tmp_path / "run", tmp_path / "run", model=getattr(models, scoring), **options)
    assert both.other is not None
    assert both.other.lineage is True
    assert all(p.metrics["overlap_same_token"].value == 1 for p in both.other.layers)


def test_samples_without_positions(tmp_path: Path) -> None:
    """Images and their labels: one row a patch, no token ids, no prompt to continue."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = models.spread(models.PositionsFirst(), 0)
    (tmp_path / "run").mkdir()
    torch.save(model.state_dict(), tmp_path / "run" / "w.pt")
    save_file({"patches": torch.randn(24, 5, 3), "labels": torch.arange(24) % 4},
              tmp_path / "p.safetensors", metadata={"positions": "5"})  # fmt: skip
    record = routing(
        tmp_path / "run", probe=tmp_path / "p.safetensors", model=models.positions_first,
        router="block.gate", top_k=2, scoring="softmax", generate=3, cache=False,
    )  # fmt: skip
    (layer,) = record.layers
    json.loads(json_report.render(record))
    assert layer.metrics["overlap_unrelated"].value is not None
    assert layer.metrics["vocabulary_overlap"].value is None
    assert any(note.startswith("--generate: ") for note in record.notes)


def test_a_sharded_run_with_its_config_elsewhere(
    tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    file = write_probe(tmp_path / "p.jsonl", random_ids(LENGTHS), ["a", "b"])
    for step in (0, 10):
        model = build_tiny("qwen2_moe", seed=step)
        save_fsdp(model, tmp_path / "fsdp" / f"checkpoint-{step}")
        model.save_pretrained(tmp_path / "plain" / f"checkpoint-{step}")
    model.config.save_pretrained(tmp_path / "base")
    expected = routing(tmp_path / "plain", probe=file, generate=2, cache=False)
    found = routing(tmp_path / "fsdp", probe=file, generate=2, cache=False,
                    config=tmp_path / "base")  # fmt: skip
    assert_alike(expected, found)
    assert found.trajectory is not None
    assert [s.step for s in found.trajectory.steps] == [0, 10]
    lost = moegeo("routing", tmp_path / "fsdp", "--probe", file)
    assert lost.code == 2
    assert "config" in lost.err
    kin = routing(tmp_path / "fsdp", tmp_path / "plain", probe=file, cache=False,
                  config=tmp_path / "base").other  # fmt: skip
    assert kin is not None
    assert kin.lineage is True
    assert all(p.metrics["overlap_same_token"].value == 1 for p in kin.layers)


def test_captures_of_the_command_line(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    here = tiny("qwen3_moe")
    model = AutoModelForCausalLM.from_pretrained(here).eval()
    with torch.no_grad(), capture_routers(model, tmp_path / "c.safetensors"):
        model(input_ids=torch.from_numpy(np.array(random_ids([12] * 10))))
    found = call(capsys, "routing", here, "--captures", tmp_path / "c.safetensors", "--no-cache",
                 "--full")  # fmt: skip
    assert found.code == 0, found.err
    assert "AT A GLANCE" in found.out
