"""What a command says of the settings file that changes it, and how it names what it works on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moegeo_cli.cli.settings import settings_in_force, threshold_overrides
from tests.command import call
from tests.end_to_end.conftest import random_ids, write_probe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return write_probe(tmp_path / "probe.jsonl", random_ids([20, 20, 20, 20]))


def test_settings_of_a_file_are_said_and_kept(
    here: Path, tiny: Callable[..., Path], probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "pyproject.toml").write_text(
        '[tool.moegeo]\nfail-on = "failing"\n[tool.moegeo.thresholds]\nrouter-collapse = 0.9\n'
    )
    told = call(capsys, "analyze", tiny("mixtral"), "--probe", probe, "--no-cache", "-f", "json")
    first = told.err.splitlines()[0]
    assert first == "settings of pyproject.toml: fail-on = failing, thresholds.router-collapse"
    assert told.document["settings"]["thresholds"] == {
        "router-collapse": {"value": 0.9, "source": "set by the user in pyproject.toml"}
    }
    reasons = told.document["verdict"]["reasons"]
    assert "limit set by you in pyproject.toml: router-collapse = 0.9" in reasons
    assert "settings of" not in call(capsys, "explain", "MG101").err, "it takes none of them"


def test_a_limits_own_source_is_kept(here: Path) -> None:
    (here / "moegeo.toml").write_text(
        '[thresholds]\nlogit-explosion = 40\nrouter-collapse = {value = 0.5, source = "our runs"}\n'
    )
    assert threshold_overrides() == {
        "logit-explosion": {"value": 40, "source": "set by the user in moegeo.toml"},
        "router-collapse": {"value": 0.5, "source": "our runs"},
    }
    words = settings_in_force("analyze", {"analyze": {}})
    assert (
        words == "settings of moegeo.toml: thresholds.logit-explosion, thresholds.router-collapse"
    )
    assert settings_in_force("inspect", {}) == ""


@pytest.mark.parametrize("command", ["analyze", "check", "routing", "experts", "invariance"])
def test_a_single_checkpoint_has_its_folders_name(
    command: str, tiny: Callable[..., Path], here: Path, probe: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(tiny("mixtral"), here / "checkpoint-7")
    monkeypatch.chdir(here / "checkpoint-7")
    own = [] if command == "check" else ["--probe", probe, "--max-tokens", "64"]
    kept = [] if command == "invariance" else ["--no-cache"]
    told = call(capsys, command, ".", *own, *kept)
    assert told.code == 0, told.err
    assert "checkpoint-7" in told.err
    assert " .:" not in told.err
    assert not told.err.startswith(".:")
