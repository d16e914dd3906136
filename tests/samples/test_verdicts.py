"""What moegeo says of the shipped runs, through the command line as README shows it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sample_checkpoints import train
from sample_checkpoints.recipes import Recipe
from tests.command import Outcome, call

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "sample_checkpoints"
TUTORIAL = (ROOT / "docs" / "tutorial" / "your-first-run.md").read_text()
HEALTHY, UNBALANCED = FOLDER / "healthy-qwen3-moe", FOLDER / "unbalanced-mixtral"
MISALIGNED, BALANCED = FOLDER / "misaligned-qwen3-moe", FOLDER / "balanced-glm4-moe"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements of this module: a run is measured once, and the samples stay as they are."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def moegeo(stores: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(command: str, path: Path, *more: object) -> Outcome:
        return call(capsys, command, path, *more, "--cache-dir", stores)

    return run


def active(document: Any) -> dict[str, Any]:
    return {
        f["name"]: f
        for f in document["verdict"]["findings"]
        if f["state"] == "active" and f["severity"] != "info"
    }


def test_the_healthy_run_is_healthy_and_passes_the_gate(moegeo: Callable[..., Outcome]) -> None:
    found = moegeo("analyze", HEALTHY, "--format", "json", "--fail-on", "failing")
    assert found.code == 0
    verdict = found.document["verdict"]
    assert verdict["routing"] == "healthy"
    assert verdict["performance"] == "undetermined"
    assert active(found.document) == {}
    assert found.document["interventions"] == []
    newest = found.document["checkpoints"][-1]
    assert newest["step"] == 400
    assert newest["coverage"] == {
        "routers_found": 3, "routers_measured": 3, "not_measured": {},
    }  # fmt: skip


def test_the_unbalanced_run_is_watched_and_told_which_key(moegeo: Callable[..., Outcome]) -> None:
    found = moegeo("analyze", UNBALANCED, "--format", "json", "--fail-on", "failing")
    assert found.code == 0, "an unequal load stops no training"
    document = found.document
    assert document["verdict"]["status"] == "watch"
    assert set(active(document)) == {"balancing-inactive"}
    unequal = {f["name"]: f for f in document["verdict"]["findings"]}["router-collapse"]
    assert unequal["severity"] == "info"
    assert "of 8 experts carry the load" in unequal["message"]
    first = document["interventions"][0]
    assert first["key"]["key"] == "output_router_logits"
    assert first["key"]["suggested"] is True
    assert first["key"]["live"] is True
    gated = moegeo("analyze", UNBALANCED, "--format", "json", "--fail-on", "watch")
    assert gated.code == 1
    assert gated.document["verdict"] == document["verdict"]
    assert "verdict: watch (routing watch" in gated.err


def test_loss_alone_shows_what_went_wrong_without_collapse(moegeo: Callable[..., Outcome]) -> None:
    alone = moegeo("analyze", MISALIGNED, "--format", "json").document
    assert alone["verdict"]["routing"] != "failing"
    assert alone["verdict"]["performance"] == "undetermined"
    held = moegeo("analyze", MISALIGNED, "--reference", HEALTHY, "--format", "json").document
    behind = active(held)["loss-behind-reference"]
    (gap,) = behind["evidence"]
    assert gap["metric"]["ci_low"] > 0
    assert held["verdict"]["performance"] == "watch"
    assert held["verdict"]["routing"] != "failing"


def test_the_sigmoid_run_is_balanced_by_its_bias(moegeo: Callable[..., Outcome]) -> None:
    document = moegeo("analyze", BALANCED, "--format", "json").document
    assert document["verdict"]["routing"] == "healthy"
    layers = document["checkpoints"][-1]["layers"]
    assert [layer["scoring"] for layer in layers] == ["sigmoid", "sigmoid"]
    assert max(layer["metrics"]["collapse"]["value"] for layer in layers) < 0.3


def test_the_papers_policy_gives_the_papers_verdict(moegeo: Callable[..., Outcome]) -> None:
    for path in (HEALTHY, UNBALANCED, MISALIGNED):
        document = moegeo("analyze", path, "--policy", "paper", "--format", "json").document
        fhs = document["checkpoints"][-1]["metrics"]["fhs"]["value"]
        assert document["verdict"]["policy"] == "paper"
        assert document["verdict"]["status"] == ("failing" if fhs > 1 else "healthy")


def test_compare_says_which_is_healthier_and_by_how_much(moegeo: Callable[..., Outcome]) -> None:
    found = moegeo("compare", HEALTHY, UNBALANCED, "--format", "json")
    assert found.code == 0
    assert found.document["healthier"] == "a"
    assert "collapse" in found.document["reason"]
    assert [p["step_a"] for p in found.document["pairs"]] == [0, 100, 200, 300, 400]
    gap = found.document["pairs"][-1]["differences"]["collapse_worst"]["difference"]
    assert gap["ci_low"] > 0
    turned = moegeo("compare", UNBALANCED, HEALTHY, "--format", "json").document
    assert turned["healthier"] == "b"
    back = turned["pairs"][-1]["differences"]["collapse_worst"]["difference"]
    assert back["value"] == pytest.approx(-gap["value"])


def test_compare_on_the_loss_where_routing_is_alike(moegeo: Callable[..., Outcome]) -> None:
    document = moegeo("compare", HEALTHY, MISALIGNED, "--format", "json").document
    assert document["healthier"] == "a"
    assert "loss" in document["reason"]


def test_adams_second_moment_needs_no_pass(moegeo: Callable[..., Outcome]) -> None:
    newest = HEALTHY / "checkpoint-400"
    document = moegeo("analyze", newest, "--fisher", "adam", "--format", "json").document
    metrics = document["checkpoints"][0]["layers"][0]["metrics"]
    assert metrics["heterogeneity_trace"]["value"] > 0
    assert metrics["heterogeneity_trace"]["ci_low"] is None
    assert document["settings"]["fisher"]["kind"] == "adam"
    without = moegeo("analyze", HEALTHY / "checkpoint-300", "--fisher", "adam")
    assert without.code == 2
    assert "optimizer" in without.err
    assert "Traceback" not in without.err


def as_shown(line: str) -> str:
    """A line of output without what another processor may round otherwise: numbers and bars."""
    return re.sub(r"\s+", " ", re.sub(r"[▁-█]+", "▁", re.sub(r"\d[\d,.]*", "#", line))).strip()


def test_the_tutorial_shows_what_is_printed(
    moegeo: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    printed = {"analyze": moegeo("analyze", UNBALANCED).out}
    printed["analyze --full"] = moegeo("analyze", UNBALANCED, "--full").out
    printed["inspect"] = call(capsys, "inspect", UNBALANCED).out
    shown = re.findall(
        r"```console\n\$ moegeo (\w+) sample_checkpoints/unbalanced-mixtral( --full)?\n(.*?)```",
        TUTORIAL, re.DOTALL,
    )  # fmt: skip
    assert len(shown) >= 6
    for command, full, text in shown:
        real = {as_shown(line) for line in printed[command + full].splitlines()}
        lines = {as_shown(line) for line in text.splitlines()} - {"…", ""}
        assert lines - real == set()


def test_the_tutorials_training_changes_the_setting_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [line] = re.findall(r"^python -m sample_checkpoints.train (.*)$", TUTORIAL, re.MULTILINE)
    seen: list[tuple[Recipe, int, Path]] = []
    monkeypatch.setattr(train, "train", lambda *call: seen.append(call))
    monkeypatch.setattr(sys, "argv", ["train", *shlex.split(line)])
    monkeypatch.chdir(tmp_path)
    train.main()
    [(recipe, seed, output)] = seen
    before = train.RECIPES["unbalanced-mixtral"]
    changed = {k for k, v in recipe.config.items() if before.config.get(k) != v}
    assert changed == {"output_router_logits"}
    assert train.build(recipe).config.output_router_logits is True
    assert (seed, output) == (before.seed, Path("build/unbalanced-mixtral"))
