"""States planted in a router's weights, and read rightly through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.conftest import Outcome, random_ids, write_probe
from tests.tiny_models import build_tiny

Plant = Callable[[torch.Tensor, torch.Tensor], None]


def analyse(
    plant: Plant,
    tmp_path: Path,
    moegeo: Callable[..., Outcome],
    lengths: list[int] | None = None,
    domains: list[str] | None = None,
) -> dict[str, Any]:
    """A GPT-OSS router (E = 6, K = 2) with weight and bias set by `plant`, in every layer."""
    model = build_tiny("gpt_oss", 7)
    with torch.no_grad():
        for layer in model.model.layers:
            plant(layer.mlp.router.weight, layer.mlp.router.bias)
    model.save_pretrained(tmp_path / "model")
    probe = write_probe(tmp_path / "p.jsonl", random_ids(lengths or [40] * 64), domains)
    found = moegeo("analyze", tmp_path / "model", "--probe", probe, "--format", "json")
    assert found.code == 0, found.err
    return dict(found.document)


def values(document: dict[str, Any], layer: int = 1) -> dict[str, Any]:
    metrics = document["checkpoints"][0]["layers"][layer]["metrics"]
    return {name: metric["value"] for name, metric in metrics.items()}


def findings(document: dict[str, Any]) -> set[str]:
    return {f["name"] for f in document["verdict"]["findings"] if f["state"] == "active"}


def test_hard_collapse(tmp_path: Path, moegeo: Callable[..., Outcome]) -> None:
    def plant(weight: torch.Tensor, bias: torch.Tensor) -> None:
        weight.mul_(0.01)
        bias.copy_(torch.tensor([20.0, 10.0, 0, 0, 0, 0]))

    document = analyse(plant, tmp_path, moegeo, domains=["code", "prose", "maths", "chat"])
    found = values(document)
    assert found["collapse"] == pytest.approx(1.0)
    assert found["effective_experts"] == pytest.approx(2.0)
    assert found["dead_experts"] == 4
    assert found["dispersion"] < 0.01
    assert document["verdict"]["routing"] == "failing"
    assert {"router-collapse", "dead-experts"} <= findings(document)
    assert document["checkpoints"][0]["layers"][1]["dead"] == [2, 3, 4, 5]
    narrow = analyse(plant, tmp_path, moegeo)
    assert narrow["verdict"]["routing"] == "watch", "one kind of text proves no collapse"


def test_soft_collapse_is_not_taken_for_balance(
    tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    def plant(weight: torch.Tensor, bias: torch.Tensor) -> None:
        weight.mul_(1e-4)
        bias.copy_(torch.tensor([0.05, 0.05, 0, 0, 0, 0]))

    document = analyse(plant, tmp_path, moegeo)
    found = values(document)
    assert found["entropy_token"] > 0.999
    assert found["collapse_soft"] < 0.03
    assert found["collapse"] == pytest.approx(1.0)
    assert found["entropy_load_rescaled"] == pytest.approx(0.0, abs=1e-9)
    assert "router-collapse" in findings(document)


def test_confident_and_balanced_is_no_collapse(
    tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    def plant(weight: torch.Tensor, bias: torch.Tensor) -> None:
        weight.copy_(torch.linalg.qr(torch.randn(weight.shape[1], 6))[0].T * 12)
        bias.zero_()

    document = analyse(plant, tmp_path, moegeo)
    found = values(document)
    assert found["fsi"] > 0.8
    assert found["entropy_token"] < 0.25
    assert found["entropy_load"] > 0.9
    assert found["dispersion"] > 0.6
    assert "router-collapse" not in findings(document)
    assert document["verdict"]["routing"] != "failing"


def test_an_expert_that_is_always_second_choice_is_alive(
    tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    def plant(weight: torch.Tensor, bias: torch.Tensor) -> None:
        row = weight[0].clone() * 5
        weight.zero_()
        weight[0], weight[1] = row, -row
        bias.copy_(torch.tensor([0.0, 0, -50, -50, -50, 0]))

    document = analyse(plant, tmp_path, moegeo)
    layer = document["checkpoints"][0]["layers"][1]
    assert layer["load"][5] == pytest.approx(0.5)
    assert 5 not in layer["dead"]
    assert layer["dead"] == [2, 3, 4]


def test_padding_never_counts(tmp_path: Path, moegeo: Callable[..., Outcome]) -> None:
    lengths = [120] + [3] * 127
    document = analyse(lambda weight, bias: None, tmp_path, moegeo, lengths)
    layer = document["checkpoints"][0]["layers"][0]
    assert layer["metrics"]["fsi"]["n"] == sum(lengths) == document["probe"]["tokens"]
    alone = write_probe(tmp_path / "again.jsonl", random_ids(lengths))
    single = moegeo("analyze", tmp_path / "model", "--probe", alone, "--format", "json",
                    "--batch-size", 1, "--no-cache").document  # fmt: skip
    other = single["checkpoints"][0]["layers"][0]
    assert other["load"] == layer["load"]
    for name, metric in layer["metrics"].items():
        if metric["value"] is not None:
            assert other["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-4), name


def test_a_router_that_is_not_finite_is_a_finding(
    tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    def plant(weight: torch.Tensor, bias: torch.Tensor) -> None:
        weight[2, 3] = float("nan")

    document = analyse(plant, tmp_path, moegeo)
    assert "router-nonfinite" in findings(document)
    assert document["verdict"]["status"] == "failing"


def test_a_router_of_zeros_is_a_finding(tmp_path: Path, moegeo: Callable[..., Outcome]) -> None:
    def plant(weight: torch.Tensor, bias: torch.Tensor) -> None:
        weight.zero_()
        bias.zero_()

    document = analyse(plant, tmp_path, moegeo)
    assert "router-zero" in findings(document)
    assert values(document)["fsi"] == pytest.approx(0.0, abs=1e-9)
