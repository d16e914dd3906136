"""`--log`: what is chosen, what is said, and what is refused before the work."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.errors import OutputError, UsageError
from moegeo_cli.records import Metric, RunRecord
from moegeo_cli.scalars import LAST, MAX_SCALARS, METRICS, MOVES, OWN, describe, points_of
from moegeo_cli.sinks import NAMES, find_sink, log_run, open_places
from tests.command import call

SAMPLE = Path(__file__).parents[2] / "sample_checkpoints" / "unbalanced-mixtral"


def test_the_sinks_are_the_modules_of_the_folder() -> None:
    assert NAMES == ("jsonl", "mlflow", "prometheus", "tensorboard", "trackio", "wandb")


def test_a_checkpoint_of_any_size_has_at_most_thirty_scalars(run: RunRecord) -> None:
    points = points_of(run)
    assert [p.step for p in points] == [0, 500, 1000]
    newest = run.checkpoints[-1]
    assert newest.verdict is not None
    values = points[-1].values
    assert 15 < len(values) <= MAX_SCALARS
    assert list(values)[-1] == LAST
    assert values["moegeo/loss"] == newest.loss.value
    assert values["moegeo/collapse_worst"] == newest.metrics["collapse_worst"].value
    assert values[LAST] == sum(f.severity == "failing" for f in newest.verdict.findings)
    assert all(describe(name) for name in values)
    whole = {name: Metric(0.5) for name in newest.metrics}
    full = dataclasses.replace(newest, metrics=whole, loss=Metric(1.0))
    [point] = points_of(dataclasses.replace(run, checkpoints=(full,)))
    assert len(point.values) <= MAX_SCALARS


def test_the_page_names_every_scalar_and_sink() -> None:
    page = (SAMPLE.parents[1] / "docs" / "how-to" / "dashboards.md").read_text()
    own = {f"moegeo/{name}" for name in (*METRICS, *MOVES, *OWN, "loss")}
    assert set(re.findall(r"`(moegeo/\w+)`", page)) == own
    assert len(own) <= MAX_SCALARS
    assert all(f"| `{module.SYNTAX}` |" in page for module in map(find_sink, NAMES))
    assert all(describe(name) for name in own)


def test_what_is_not_known_is_left_out(run: RunRecord) -> None:
    first = dataclasses.replace(
        run.checkpoints[0], loss=Metric(None, reason="no labels"),
        metrics={"fsi": Metric(math.nan), "margin": Metric(2.0)}, verdict=None,
    )  # fmt: skip
    stepless = dataclasses.replace(first, step=None)
    found = points_of(dataclasses.replace(run, checkpoints=(first, stepless)))
    assert [p.values for p in found] == [
        {"moegeo/margin": 2.0, "moegeo/findings_watch": 0.0, LAST: 0.0}
    ]
    lines = log_run(
        dataclasses.replace(run, checkpoints=(first, stepless)), open_places("jsonl:x.jsonl")
    )
    assert lines == ["jsonl:x.jsonl: 1 checkpoint written, 1 without a step left out"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("tensorbord:x", "does not know 'tensorbord'.*tensorboard:DIR"),
        ("jsonl", "does not say where.*jsonl:FILE"),
        ("tensorboard:", "does not say where.*tensorboard:DIR"),
    ],
)
def test_a_wrong_place_is_refused(said: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){words}"):
        open_places(said)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio", "prometheus"])
def test_a_missing_library_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__
    hidden = "prometheus_client" if name == "prometheus" else name

    def without(module: str, *rest: Any) -> Any:
        if module.split(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {hidden!r}")
        return real(module, *rest)

    Path("x").write_text("")  # a file that would be read
    monkeypatch.setattr(builtins, "__import__", without)
    where = "" if name in ("mlflow", "trackio", "wandb") else ":x"
    with pytest.raises(UsageError, match=rf"(?s)library.*pip install 'moegeo\[{name}\]'"):
        open_places(name + where)


@pytest.mark.parametrize("name", ["jsonl", "prometheus"])
@pytest.mark.parametrize(
    "content", ['{\n  "hidden_size": 16\n}\n', "node_load1 0.5\n", '{"run": "a", "step": 1', "\x00"]
)
def test_a_file_of_something_else_is_not_touched(name: str, content: str) -> None:
    if name == "prometheus":
        pytest.importorskip("prometheus_client")
    Path("file").write_text(content)
    with pytest.raises(OutputError, match="choose another file"):
        open_places(f"{name}:file")
    assert Path("file").read_text() == content


def test_a_place_that_cannot_be_written_is_known_before_the_work(here: Path) -> None:
    for name in ("jsonl", "prometheus"):
        if name == "prometheus":
            pytest.importorskip("prometheus_client")
        with pytest.raises(OutputError, match="is a folder"):
            open_places(f"{name}:{here}")


def test_a_fault_of_a_sink_is_an_error_of_ours(run: RunRecord) -> None:
    places = open_places("jsonl:folder/file.jsonl")
    Path("folder").write_text("in the way")
    with pytest.raises(OutputError, match="measurements are kept"):
        log_run(run, places)


def test_analyze_and_report_write_each_checkpoint_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SAMPLE, "run", ignore=shutil.ignore_patterns(".moegeo", "checkpoint-[23]00"))
    Path("moegeo.toml").write_text('[analyze]\nlog = ["jsonl:all.jsonl", "jsonl:more.jsonl"]\n')
    told = []
    for _ in range(2):
        done = call(capsys, "analyze", "run", "--max-tokens", "512", "--format", "json")
        assert done.code == 0, done.err
        told.append([line for line in done.err.splitlines() if line.startswith("jsonl")])
    again = call(capsys, "report", "run", "--log", "jsonl:all.jsonl", "--log", "jsonl:new.jsonl")
    assert again.code == 0, again.err
    assert told[0] == [f"jsonl:{n}.jsonl: 3 checkpoints written" for n in ("all", "more")]
    assert told[1][0] == "jsonl:all.jsonl: 0 checkpoints written, 3 there already"
    assert "jsonl:new.jsonl: 3 checkpoints written" in again.err
    rows = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert [(row["run"], row["step"]) for row in rows] == [("run", 0), ("run", 100), ("run", 400)]
    assert Path("new.jsonl").read_text() == Path("all.jsonl").read_text()
    early = call(capsys, "analyze", "run", "--log", "jsonl:run")
    assert early.code == 2
    assert "is a folder" in early.err
    assert "checkpoint-0" not in early.err
