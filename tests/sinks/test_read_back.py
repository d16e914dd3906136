"""Every sink is read back with its project's own library: each scalar, at its step, once."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.records import RunRecord
from moegeo_cli.scalars import points_of
from moegeo_cli.sinks import log_run, open_places

Series = dict[str, list[tuple[int, float]]]  # (step, value) by name
Reader = Callable[[str], Series]  # of a run's name
NAME = "narrow-48x128"


def series(run: RunRecord) -> Series:
    """What is to be read: every scalar of every checkpoint."""
    found: Series = {}
    for point in points_of(run):
        for name, value in point.values.items():
            found.setdefault(name, []).append((point.step, value))
    return found


def close(found: Series, wanted: Series) -> None:
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert [s for s, _ in found[name]] == [s for s, _ in values], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in values], rel=1e-6), name


def from_tensorboard(name: str) -> Series:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(Path("tb") / name), size_guidance={TENSORS: 0}).Reload()
    return {
        tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def from_mlflow(name: str) -> Series:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    [experiment] = [e for e in client.search_experiments() if e.name == "moegeo"]
    [run] = [
        r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == name
    ]  # fmt: skip
    assert run.info.status == "FINISHED"
    return {
        tag: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)]
        for tag in run.data.metrics
    }


def from_trackio(name: str) -> Series:
    pytest.importorskip("trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    [run] = [r for r in trackio.Api().runs("moegeo") if r.name == name]
    found: Series = {}
    for row in SQLiteStorage.get_logs("moegeo", run.name, run_id=run.id):
        for tag, value in row.items():
            if tag not in ("step", "timestamp"):
                found.setdefault(tag, []).append((row["step"], value))
    return found


def records_of(file: Path) -> Iterator[bytes]:
    """The records of an offline run's file: 7 bytes, then blocks as LevelDB's log has them."""
    data, at, held = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


def wandb_records(file: Path) -> list[Any]:
    """All records of an offline run. Its writer is another process, which ends with an exit."""
    from wandb.proto.wandb_internal_pb2 import Record

    end = time.monotonic() + 20
    while True:
        records = [Record.FromString(data) for data in records_of(file)]
        if any(r.HasField("exit") for r in records):
            return records
        assert time.monotonic() < end
        time.sleep(0.05)


def from_wandb(name: str) -> Series:
    """Offline runs' files, by its own messages: its readers stand in its Go program alone."""
    pytest.importorskip("wandb")
    found: Series = {}
    for file in sorted(Path("wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime):
        records = wandb_records(file)
        [title] = {r.run.display_name for r in records if r.HasField("run")}
        assert {r.run.project for r in records if r.HasField("run")} == {"moegeo"}
        rows = [r.history for r in records if r.HasField("history")]
        for row in rows if title == name else []:
            items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in row.item}
            assert items["moegeo/step"] == row.step.num == items["_step"]
            for tag, value in items.items():
                if tag.startswith("moegeo/") and tag != "moegeo/step":
                    found.setdefault(tag, []).append((row.step.num, value))
    return found


def from_jsonl(name: str) -> Series:
    found: Series = {}
    for line in Path("runs.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["run"] == name:
            for tag, value in row.items():
                if tag.startswith("moegeo/"):
                    found.setdefault(tag, []).append((row["step"], value))
    return found


SINKS: dict[str, Reader] = {
    "tensorboard:tb": from_tensorboard,
    "wandb": from_wandb,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
    "jsonl:runs.jsonl": from_jsonl,
}


@pytest.mark.parametrize("said", SINKS)
def test_a_growing_run_is_written_once(
    said: str, run: RunRecord, earlier: RunRecord, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = said.partition(":")[0]
    if name != "jsonl":
        pytest.importorskip(name)
    if name == "trackio":
        from trackio import sqlite_storage, utils

        for module in (sqlite_storage, utils):
            monkeypatch.setattr(module, "TRACKIO_DIR", here / "trackio")
    if name == "mlflow":
        import mlflow

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
        mlflow.set_tracking_uri(None)
    other = dataclasses.replace(earlier, run={**run.run, "name": "another"})
    places = open_places(said)
    assert log_run(earlier, places)[0].endswith("2 checkpoints written")
    assert log_run(earlier, places)[0].endswith("0 checkpoints written, 2 there already")
    assert log_run(other, places)[0].endswith("2 checkpoints written")
    assert log_run(run, places)[0].endswith("1 checkpoint written, 2 there already")
    assert log_run(run, places)[0].endswith("0 checkpoints written, 3 there already")
    close(SINKS[said](NAME), series(run))
    close(SINKS[said]("another"), series(other))


def test_a_run_of_wandb_that_is_open_in_the_process_goes_on(
    run: RunRecord, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that logs to W&B itself."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(here / "elsewhere"))
    (here / "elsewhere").mkdir()
    own = wandb.init(
        mode="offline", project="own", dir=str(here / "elsewhere"),
        settings=wandb.Settings(silent=True),
    )  # fmt: skip
    own.log({"loss": 1.0}, step=3)
    log_run(run, open_places("wandb"))
    assert wandb.run is own
    own.log({"loss": 2.0}, step=4)
    own.finish()
    [file] = (here / "elsewhere").glob("wandb/offline-run-*/run-*.wandb")
    records = wandb_records(file)
    assert [r.history.step.num for r in records if r.HasField("history")] == [3, 4]
    close(from_wandb(NAME), series(run))


def test_prometheus_has_the_newest_checkpoint_of_each_run(
    run: RunRecord, earlier: RunRecord, here: Path
) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    other = dataclasses.replace(earlier, run={**run.run, "name": 'a "b"\\c'})
    places = open_places("prometheus:moegeo.prom")
    for logged in (earlier, other, run):
        assert log_run(logged, places) == ["prometheus:moegeo.prom: 1 checkpoint written"]
    before = Path("moegeo.prom").read_bytes()
    assert log_run(run, places)[0].endswith("0 checkpoints written, 1 there already")
    assert Path("moegeo.prom").read_bytes() == before
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(before.decode()):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.labels["run"], {})[sample.name] = sample.value
    for logged, name in ((run, NAME), (other, 'a "b"\\c')):
        newest = points_of(logged)[-1]
        wanted = {k.replace("/", "_"): v for k, v in newest.values.items()}
        assert found[name] == {**wanted, "moegeo_step": newest.step}
