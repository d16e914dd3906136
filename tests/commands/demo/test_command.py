"""`moegeo demo`: the sample run of the package, measured without leaving files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moegeo_cli
from moegeo_cli import analyze, demo
from moegeo_cli.commands.demo.api import demo_run
from moegeo_cli.errors import PathError
from moegeo_cli.reports import render
from tests.command import call

FEW = {"max_tokens": 256}


def test_it_is_the_analysis_of_the_sample_run() -> None:
    shown = json.loads(render(demo(**FEW), "json"))
    assert shown == json.loads(render(analyze(demo_run(), cache=False, **FEW), "json"))


def test_measurements_are_stored_where_the_user_says_and_nowhere_else(tmp_path: Path) -> None:
    before = set(demo_run().rglob("*"))
    demo(**FEW)
    assert set(demo_run().rglob("*")) == before
    demo(cache_dir=tmp_path / "store", **FEW)
    assert set(demo_run().rglob("*")) == before
    assert any((tmp_path / "store").iterdir())


def test_the_command_says_what_it_measures_and_what_to_do_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = call(capsys, "demo", "--max-tokens", "256", "--format", "json")
    assert told.code == 0
    assert told.document["run"]["name"] == "unbalanced-mixtral"
    assert f"Its files: {demo_run()}" in told.err
    assert "For your own run: moegeo analyze RUN_FOLDER" in told.err


def test_an_installation_without_the_sample_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moegeo_cli, "__file__", str(tmp_path / "moegeo_cli" / "__init__.py"))
    with pytest.raises(PathError, match="the sample run is missing") as error:
        demo_run()
    assert str(tmp_path / "moegeo_cli" / "samples" / "unbalanced-mixtral") in str(error.value.found)
