"""`moegeo report`: a stored report, or one in a file, is shown again."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from moegeo_cli.measuring.keeping import keep_report, load_report
from moegeo_cli.reports import schema
from moegeo_cli.store.cache import Store
from tests.command import call
from tests.end_to_end.conftest import random_ids, write_probe
from tests.reports.html.pages import RECORDED
from tests.reports.large_run import large_run

SAMPLE = Path(__file__).parents[3] / "sample_checkpoints" / "unbalanced-mixtral"


@pytest.fixture
def routing_json(tmp_path: Path) -> Path:
    path = tmp_path / "routing.json"
    path.write_bytes(gzip.decompress((RECORDED / "healthy-qwen3-moe.routing.json.gz").read_bytes()))
    return path


def test_json_of_facts_prints_as_their_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, kept = SAMPLE, tmp_path / "facts.json"
    shown = call(capsys, "inspect", sample).out
    assert call(capsys, "inspect", sample, "-o", kept).code == 0
    jsonschema.validate(json.loads(kept.read_text()), schema("moegeo.inspect", strict=True))
    assert call(capsys, "report", kept).out == shown
    refused = call(capsys, "report", kept, "-f", "html")
    assert refused.code == 2
    assert "`moegeo inspect` has no format 'html'" in refused.err


def test_json_of_any_command_becomes_any_format(
    routing_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "routing.html"
    assert call(capsys, "report", routing_json, "-o", page).code == 0
    assert page.read_text().startswith("<!doctype html>")
    again = call(capsys, "report", routing_json, "-f", "json")
    assert again.document["metrics"] == json.loads(routing_json.read_text())["metrics"]
    assert "GEOMETRY AND USAGE" in call(capsys, "report", routing_json, "--full").out


def test_what_cannot_be_shown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text, words in (
        ("no.json", "{", "the file is not complete JSON"),
        (
            "other.json",
            '{"format": {"name": "x"}}',
            "this JSON is not a report of moegeo\n  found: format 'x'",
        ),
    ):
        (tmp_path / name).write_text(text)
        refused = call(capsys, "report", tmp_path / name)
        assert (refused.code, refused.out) == (2, "")
        assert words in refused.err
    assert "does not exist" in call(capsys, "report", tmp_path / "gone").err
    none = call(capsys, "report", tmp_path)
    assert none.code == 2
    assert f"hint: moegeo analyze {tmp_path}" in none.err


def test_the_last_analysis_is_kept_with_the_run(tmp_path: Path) -> None:
    run, record = tmp_path / "run", large_run()
    (run / "checkpoint-1").mkdir(parents=True)
    keep_report(Store(run / ".moegeo"), run, record)
    assert load_report(run, None) == record
    assert load_report(run / "checkpoint-1", None) is None, "another folder's"
    keep_report(Store(run / ".moegeo"), run / "checkpoint-1", record)
    assert load_report(run / "checkpoint-1", None) == record, "a checkpoint's lies with its run"
    [first, _] = sorted((run / ".moegeo").glob("report-*.json"))
    first.write_text(first.read_text().replace("narrow", "wide"))
    kept = [load_report(run, None), load_report(run / "checkpoint-1", None)]
    assert sorted(k is None for k in kept) == [False, True], "one changed by hand is not believed"


def test_an_analysis_can_be_shown_again_without_torch(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = tiny("qwen3_moe"), tmp_path / "store"
    probe = write_probe(tmp_path / "probe.jsonl", random_ids([20] * 8))
    measured = call(capsys, "analyze", path, "--cache-dir", store, "--probe", probe,
                    "--format", "json")  # fmt: skip
    assert measured.code == 0
    code = (
        "import sys; from moegeo_cli.cli.app import run;"
        f"code = run(['report', {str(path)!r}, '--cache-dir', {str(store)!r}, '-f', 'json']);"
        "sys.exit(code or ('torch' in sys.modules) * 7)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == measured.out
