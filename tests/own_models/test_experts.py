"""Experts of a user's own models: functions that are proven, or a reason why there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moegeo_cli import experts
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.reports import json_report
from tests.command import call
from tests.own_models import models

LENGTHS = [7, 12, 12, 5, 9, 12, 17, 4, 11, 8]
DIGITS = "sample_checkpoints/digits-moe"
OWN = ("--model", "sample_checkpoints.digits:build", "--router", "blocks.*.mixture.router",
       "--probe", f"{DIGITS}/probe.safetensors")  # fmt: skip


@pytest.fixture
def probe(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, models.VOCABULARY, n).tolist() for n in LENGTHS]
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(json.dumps({"input_ids": i}) + "\n" for i in ids))
    return path, ids


def save(name: str, folder: Path, change: Callable[[Any], None] | None = None) -> Any:
    model = models.spread(getattr(models, name)(None), 0).eval()
    if change is not None:
        with torch.no_grad():
            change(model)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, folder / "weights.pt")
    return model


def measure(name: str, folder: Path, probe: Path, **more: Any) -> ExpertsRecord:
    scoring = "softmax" if name in {"softmax", "dense"} else "sigmoid"
    options = {"scoring": scoring, "top_k": models.CHOSEN, "rank": 2, "cache": False, **more}
    if name != "listed":
        options["router"] = "blocks.*.gate"
    return experts(folder, probe=probe, model=f"tests.own_models.models:{name}", **options)


def function(name: str, block: Any, e: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An expert as the class is written."""
    if name == "listed":
        return lambda x: block.experts[e](x)
    if name == "stacked":
        return lambda x: block.one(e, x)
    return lambda x: block.experts[e](x).relu()


def choose(name: str, block: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which experts each token goes to, and with which weights, as the class is written."""
    if name == "listed":
        _, weights, chosen = block.router(x)
        return chosen, weights
    logits = block.gate(x)
    scores = logits.softmax(-1) if name in {"softmax", "dense"} else logits.sigmoid()
    weights, chosen = scores.topk(2, dim=-1)
    if name in {"softmax", "sigmoid"}:
        weights = weights / weights.sum(-1, keepdim=True)
    return chosen, weights


@pytest.mark.parametrize(
    ("name", "method"),
    [("softmax", "autograd"), ("sigmoid", "autograd"), ("dense", "autograd"),
     ("listed", "closed form (gated SiLU)"), ("stacked", "closed form (squared ReLU)")],
)  # fmt: skip
def test_alignments_and_weights_are_those_of_the_written_functions(
    name: str, method: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    model = save(name, tmp_path / "run")
    record = measure(name, tmp_path / "run", probe[0], jacobian_tokens=sum(LENGTHS))
    assert record.status == "complete"
    seen: list[list[torch.Tensor]] = [[], []]
    handles = [
        block.register_forward_hook(
            lambda _, args, out, place=place: seen[place].append(
                args[0].detach().reshape(-1, models.WIDTH)
            )
        )
        for place, block in enumerate(model.blocks)
    ]
    with torch.no_grad():
        for ids in probe[1]:
            model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    for place, layer in enumerate(record.layers):
        block, x = model.blocks[place], torch.cat(seen[place])
        assert method in layer.method
        assert layer.directions == 0
        chosen, weights = choose(name, block, x)
        mine = torch.stack([(chosen == e).any(1) for e in range(models.EXPERTS)], 1)
        jacobians = torch.stack([
            torch.stack([
                torch.autograd.functional.jacobian(function(name, block, e), row).flatten()
                for row in x
            ]) for e in range(models.EXPERTS)
        ])  # fmt: skip
        unit = F.normalize(jacobians.double(), dim=-1)
        for a in range(models.EXPERTS):
            assert layer.expert[a].tokens == int(mine[:, a].sum())
            share = (weights * (chosen == a)).sum() / weights.sum()
            assert layer.expert[a].mass == pytest.approx(float(share.detach()), rel=1e-5)
            if mine[:, a].any():
                made = function(name, block, a)(x[mine[:, a]]).norm(dim=1).mean().detach()
                assert layer.expert[a].output_norm == pytest.approx(float(made), rel=1e-4)
            for b in range(a):
                either = (mine[:, a] | mine[:, b]) & (unit[a].any(-1) & unit[b].any(-1))
                mean = float((unit[a] * unit[b]).sum(-1)[either].mean())
                assert layer.matrices["alignment"][a][b] == pytest.approx(mean, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("normed", "get different inputs"), ("normed_after", "not the weighted sum of its experts"),
     ("mixing", "depends on other tokens"), ("entangled", "cannot be separated from the rest"),
     ("boxed", "no tensor of its input's form")],
)  # fmt: skip
def test_a_block_that_is_no_sum_of_experts_has_its_reason(
    name: str, reason: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save(name, tmp_path / "run")
    record = measure(name, tmp_path / "run", probe[0], verify=1)
    assert record.status == "partial"
    assert record.coverage.routers_measured == 2  # what they are given is known all the same
    for layer in record.layers:
        assert reason in layer.method
        assert layer.metrics["alignment"].value is None
        assert reason in (layer.metrics["alignment"].reason or "")
        assert layer.metrics["overlap_input"].value is not None
        assert layer.null_limit is None
    [check] = record.checks
    assert check.outcome == "skipped"
    assert record.verification is None
    assert any("--verify" in note for note in record.notes)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_a_library_model_by_way_of_a_factory_gives_the_same_numbers(
    model_type: str, tiny: Callable[..., Path], tmp_path: Path,
    probe: tuple[Path, list[list[int]]],
) -> None:  # fmt: skip
    """With a shared expert in the block, with groups and a bias on the choice."""
    from transformers import AutoModelForCausalLM

    source = tiny(model_type)
    known = experts(source, probe=probe[0], rank=2, cache=False)
    model = AutoModelForCausalLM.from_pretrained(source)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    scoring = "sigmoid" if model_type == "deepseek_v3" else "softmax"
    own = experts(tmp_path / "last.ckpt", probe=probe[0], rank=2, cache=False,
                  model=models.library, scoring=scoring)  # fmt: skip
    assert own.status == "complete"
    for one, other in zip(known.layers, own.layers, strict=True):
        assert "closed form" in other.method
        for name in ("alignment", "mean_jacobian_alignment", "overlap_input", "overlap_output"):
            a, b = (np.array(x.matrices[name], dtype=float) for x in (one, other))
            np.testing.assert_allclose(a, b, atol=2e-4)
        np.testing.assert_allclose(
            [e.mass for e in one.expert], [e.mass for e in other.expert], rtol=1e-4, atol=1e-7
        )


def permuted_twin(model: Any) -> None:
    """Expert 3 of the second block computes what expert 1 does, its neurons in another order."""
    one, other = model.blocks[1].experts[1], model.blocks[1].experts[3]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    other.w1.weight.copy_(one.w1.weight[order])
    other.w3.weight.copy_(one.w3.weight[order])
    other.w2.weight.copy_(one.w2.weight[:, order])


def test_a_planted_twin_is_found_merged_and_reaches_the_verdict(
    tmp_path: Path, probe: tuple[Path, list[list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    save("listed", tmp_path / "run", permuted_twin)
    common = ["--model", "tests.own_models.models:listed", "--scoring", "sigmoid",
              "--probe", probe[0], "--format", "json"]  # fmt: skip
    found = call(capsys, "experts", tmp_path / "run", *common, "--rank", 2, "--verify", 1)
    assert found.code == 0, found.err
    document = found.document
    jsonschema.validate(document, json_report.schema("moegeo.experts", strict=True))
    first, *others = document["merge_candidates"]
    assert (first["layer"], first["experts"]) == (1, [1, 3])
    assert first["alignment"]["value"] > 0.99
    assert all(c["alignment"]["value"] < 0.6 for c in others)
    assert sum(c["above_null"] for c in others) <= 1
    ranking = next(t for t in document["verification"]["trials"] if t["choice"] == "ranking")
    assert ranking["change"]["value"] == pytest.approx(0, abs=1e-6)
    run = call(capsys, "analyze", tmp_path / "run", *common, "--baseline", "none").document
    names = {f["name"] for f in run["verdict"]["findings"]}
    assert "redundant-experts" in names
    # Another factory is another model: nothing that was measured through this one counts for it.
    common[1] = "tests.own_models.models:same_listed"
    other = call(capsys, "analyze", tmp_path / "run", *common, "--baseline", "none").document
    assert "redundant-experts" not in {f["name"] for f in other["verdict"]["findings"]}


def test_the_digits_sample_is_measured_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Two fused stacks in the block that chooses; 16 patches of an image; labels of images."""
    found = call(capsys, "experts", DIGITS, *OWN, "--verify", 1, "--no-cache", "--format", "json")
    assert found.code == 0, found.err
    document = found.document
    jsonschema.validate(document, json_report.schema("moegeo.experts", strict=True))
    assert document["status"] == "complete"
    assert document["loss"]["value"] == pytest.approx(0.162, abs=5e-4)
    for layer in document["layers"]:
        assert layer["method"] == "closed form (GELU), verified against autograd"
        assert sum(e["tokens"] for e in layer["expert"]) == 2 * 360 * 16
    assert [c["outcome"] for c in document["checks"]] == ["passed"]
    assert document["verification"]["trials"]
