"""Records in notebooks: what they say, their frames, their plots, and Parquet."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moegeo_cli.errors import UsageError
from moegeo_cli.records import Metric, RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.reports import render, render_screen
from tests.command import call
from tests.reports.html.pages import HOSTILE_MARK, Reader, hostile, recorded
from tests.reports.large_run import large_run

pytest.importorskip("pyarrow")
KINDS = ("run", "compare", "check", "experts", "routing")


@pytest.fixture
def records(comparison: ComparisonRecord) -> dict[str, Any]:
    lenses = {name: recorded(name) for name in ("check", "experts", "routing")}
    return {"run": large_run(), "compare": comparison, **lenses}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_says_what_its_command_prints(kind: str, records: dict[str, Any]) -> None:
    record = records[kind]
    assert str(record) + "\n" == render_screen(record)
    assert len(repr(record)) < 120
    shown = Reader(record._repr_html_())
    assert shown.faults == []
    assert {tag for tag, _ in shown.tags} <= {"pre", "span", "code"}
    words = "".join("".join(shown.words).split())
    assert words == "".join(str(record).split())


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_stays_text_in_a_notebook(kind: str, records: dict[str, Any]) -> None:
    shown = Reader(hostile(records[kind])._repr_html_())
    assert {tag for tag, _ in shown.tags} <= {"pre", "span", "code"}
    assert HOSTILE_MARK in "".join(shown.words)


def test_the_frame_of_a_run_holds_every_number(run: RunRecord) -> None:
    frame = run.frame()
    for checkpoint in run.checkpoints:
        rows = frame[frame["checkpoint"] == checkpoint.path]
        whole = rows[rows["layer"].isna()].set_index("metric")
        assert whole.loc["loss", "value"] == pytest.approx(checkpoint.loss.value)
        for layer in checkpoint.layers:
            own = rows[(rows["layer"] == layer.layer) & (rows["router"] == layer.router)]
            by_name = own.set_index("metric")
            for name, metric in layer.metrics.items():
                same(by_name.loc[name], metric)
    assert set(run.frames()) >= {"metrics", "layers", "experts", "domains", "findings"}
    with pytest.raises(UsageError, match="no table 'nothing'"):
        run.frame("nothing")


def same(row: Any, metric: Metric) -> None:
    for name in ("value", "ci_low", "ci_high", "n"):
        wanted, got = getattr(metric, name), row[name]
        assert pd.isna(got) if wanted is None else got == pytest.approx(wanted)
    assert row["unit"] == metric.unit


def test_frames_of_the_other_records(records: dict[str, Any]) -> None:
    experts, routing = records["experts"], records["routing"]
    [row] = experts.frame().query("metric == 'alignment' and layer == 1").to_dict("records")
    assert row["value"] == experts.layers[1].metrics["alignment"].value
    merges = experts.frame("merge_candidates")
    assert list(merges["experts"]) == [list(c.experts) for c in experts.merge_candidates]
    assert list(merges["alignment"]) == [c.alignment.value for c in experts.merge_candidates]
    rows = routing.frame().query("metric == 'domain_gap' and layer.notna()")
    wanted = [x.metrics["domain_gap"].value for x in routing.layers]
    assert list(rows["value"])[: len(wanted)] == wanted
    compared = records["compare"]
    pair = compared.pairs[-1]
    rows = compared.frame().query(f"metric == 'loss' and step_a == {pair.step_a}")
    assert list(rows["difference"]) == [pair.differences["loss"].difference.value]
    assert list(rows["b"]) == [pair.differences["loss"].b.value]
    checked = records["check"].frame().query("metric == 'row_norm' and layer == 0")
    assert len(checked) == len(records["check"].checkpoints)


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_is_read_back_by_pandas(kind: str, records: dict[str, Any]) -> None:
    record = records[kind]
    data = render(record, "parquet")
    assert data == render(record, "parquet"), "the same record, the same bytes"
    back, frame = pd.read_parquet(io.BytesIO(data)), record.frame()
    assert list(back.columns) == list(frame.columns)
    assert len(back) == len(frame) >= 10
    column = "difference" if kind == "compare" else "value"
    kept = back[column].astype("float64")
    pd.testing.assert_series_equal(kept, frame[column].astype("float64"))
    assert list(back["metric"]) == list(frame["metric"])


def test_parquet_goes_into_a_file(
    tmp_path: Path, records: dict[str, Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = tmp_path / "routing.json"
    source.write_text(render(records["routing"], "json"))
    told = call(capsys, "report", source, "--format", "parquet")
    assert (told.code, told.out) == (2, "")
    assert "-o report.parquet" in told.err
    out = tmp_path / "routing.parquet"
    assert call(capsys, "report", source, "-o", out).code == 0
    assert len(pd.read_parquet(out)) == len(records["routing"].frame())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = call(capsys, "report", source, "-o", tmp_path / "more.parquet")
    assert told.code == 2
    assert "pip install 'moegeo[parquet]'" in told.err
    assert not (tmp_path / "more.parquet").exists()


def test_plots_hold_the_numbers(records: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    run = records["run"]
    axes = run.plot("collapse")
    [line] = axes.lines
    wanted = [x.metrics["collapse"].value for x in run.newest.layers]
    assert list(line.get_ydata()) == pytest.approx(wanted)
    assert list(line.get_xdata()) == [x.layer for x in run.newest.layers]
    steps = run.plot("loss", over="step")
    assert list(steps.lines[0].get_xdata()) == [c.step for c in run.checkpoints]
    [image] = run.plot_load().images
    first = run.newest.layers[0]
    assert list(image.get_array()[0]) == pytest.approx([x * first.choices for x in first.load])
    assert records["experts"].plot("alignment").get_ylabel()
    with pytest.raises(UsageError, match="no 'nothing' over layer"):
        run.plot("nothing")
    with pytest.raises(UsageError, match="over layer or step"):
        run.plot("loss", over="time")
    with pytest.raises(UsageError, match="no loads"):
        records["experts"].plot_load()


def test_plots_without_matplotlib_say_what_to_install(
    records: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match="plots need matplotlib"):
        records["run"].plot("collapse")


def test_records_load_no_pandas_by_themselves() -> None:
    code = (
        "import sys, moegeo_cli.records.formats; print({'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_notebook_text_is_still_text(
    kind: str, records: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich takes a notebook for its output wherever it finds one."""
    wanted = (str(records[kind]), render(records[kind], "rich"), records[kind]._repr_html_())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert (
        str(records[kind]),
        render(records[kind], "rich"),
        records[kind]._repr_html_(),
    ) == wanted
