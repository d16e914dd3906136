"""`watch`: on a run that trains beside it, and on runs whose saves are stopped at every stage."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import moegeo_cli
from moegeo_cli import sinks
from moegeo_cli.cli import watch as command
from moegeo_cli.commands.watch import api
from moegeo_cli.errors import UsageError
from tests.command import call
from tests.processes import Started
from tests.small_training import SAVES, WaitForLines, trainer

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "sample_checkpoints" / "unbalanced-mixtral"
FEW = {"max_tokens": 512}


class Looks:
    """Stands in for the pause between two looks: the run grows in it, by what is to be done."""

    def __init__(self, *todo: Callable[[], object]) -> None:
        self.todo = iter(todo)

    def __call__(self, seconds: float) -> None:
        do = next(self.todo, None)
        if do is None:
            raise KeyboardInterrupt
        do()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one checkpoint."""
    folder = tmp_path / "run"
    save(folder, 100)
    return folder


def save(folder: Path, step: int, *, like: int | None = None, without: str = "-") -> Path:
    """A checkpoint of the sample, with its step in the Trainer's state."""
    place = folder / f"checkpoint-{step}"
    source = SAMPLE / f"checkpoint-{like or step}"
    shutil.copytree(source, place, ignore=shutil.ignore_patterns(without))
    state = place / "trainer_state.json"
    if like is not None and state.exists():
        state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": step}))
    return place


def lose_a_router(place: Path) -> None:
    """What a bad save leaves: a router of zeros."""
    file = place / "model.safetensors"
    tensors = load_file(file)
    [name, *_] = sorted(n for n in tensors if "gate" in n and tensors[n].shape[0] == 8)
    tensors[name].zero_()
    save_file(tensors, file, metadata={"format": "pt"})


def seen(found: Iterator[api.Sighting]) -> list[int | None]:
    """Steps until the looks are over."""
    steps = []
    with contextlib.suppress(KeyboardInterrupt):
        for sighting in found:
            steps += [sighting.checkpoint.step]
    return steps


def nothing() -> None:
    """Between two looks the run stays as it is."""


def test_a_run_that_trains_beside_it(tmp_path: Path) -> None:
    """As a person does it; moegeo is a process of its own here."""
    out = tmp_path / "run"
    watching = Started(tmp_path, "watch", out, "--interval", 0.2, "--max-tokens", 512,
                       "--log", f"jsonl:{tmp_path}/log.jsonl")  # fmt: skip
    try:
        trainer(str(out), WaitForLines(tmp_path / "log.jsonl")).train()
        watching.process.join(0)
        assert watching.process.pid is not None
        os.kill(watching.process.pid, signal.SIGINT)
        code, said, words = watching.end()
    finally:
        watching.kill()
    assert code == 130
    assert "Traceback" not in words
    lines = said.splitlines()
    assert len(lines) == len(SAVES)
    assert [line.split()[:2] for line in lines] == [["step", str(step)] for step in SAVES]
    whole = moegeo_cli.analyze(out, **FEW)
    for line, checkpoint in zip(lines, whole.checkpoints, strict=True):
        assert checkpoint.verdict is not None
        assert line.split()[2] == checkpoint.verdict.status
        assert f"loss {checkpoint.loss.value:.3f}" in line
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(SAVES)
    assert [row["moegeo/loss"] for row in rows] == [c.loss.value for c in whole.checkpoints]


def test_a_checkpoint_is_read_once_its_trainer_has_sealed_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    real = api.analyze
    monkeypatch.setattr(api, "analyze", lambda *a, **k: (read.append(k["steps"]), real(*a, **k))[1])
    place = run / "checkpoint-200"
    looks = Looks(
        lambda: save(run, 200, without="trainer_state.json"), nothing, nothing,
        lambda: shutil.copy(SAMPLE / place.name / "trainer_state.json", place),
    )  # fmt: skip
    monkeypatch.setattr(api.time, "sleep", looks)
    assert seen(moegeo_cli.watch(run, **FEW)) == [100, 200]
    assert read == [[100], [100, 200]]


def test_a_checkpoint_without_a_seal_counts_when_it_has_stood_still(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "checkpoint-100" / "trainer_state.json").unlink()
    looks: list[int] = []
    more = run / "checkpoint-100" / "optimizer.pt"
    todo = Looks(
        lambda: more.write_bytes(b"a"), lambda: more.write_bytes(b"ab"), nothing, nothing
    )  # fmt: skip
    monkeypatch.setattr(api.time, "sleep", lambda s: (looks.append(1), todo(s)))
    found = moegeo_cli.watch(run, **FEW)
    assert next(found).checkpoint.step == 100
    assert len(looks) == 3  # it changed at two, and stood still at the third


def test_what_is_half_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    weights = run / "checkpoint-100" / "model.safetensors"

    def truncate() -> None:
        save(run, 100)
        weights.write_bytes(weights.read_bytes()[:1000])

    looks = Looks(
        run.mkdir, lambda: (run / "checkpoint-100").mkdir(),
        lambda: (run / "checkpoint-100").rmdir(), truncate,
        lambda: shutil.copy(SAMPLE / "checkpoint-100" / weights.name, weights),
    )  # fmt: skip
    monkeypatch.setattr(api.time, "sleep", looks)
    assert seen(moegeo_cli.watch(run, progress=command.QuietProgress(), **FEW)) == [100]
    told = capsys.readouterr().err.splitlines()
    assert len(told) >= 3
    assert all(line.startswith("  waiting: ") for line in told)


def test_a_checkpoint_that_cannot_be_measured_is_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training goes on, and so does the watch; the first analysis raises as `analyze` does."""

    def other_shape() -> None:
        file = save(run, 200) / "config.json"
        file.write_text(
            file.read_text().replace('"num_local_experts": 8', '"num_local_experts": 4')
        )

    looks = Looks(other_shape, nothing, nothing, lambda: save(run, 300), nothing)
    monkeypatch.setattr(api.time, "sleep", looks)
    assert seen(moegeo_cli.watch(run, progress=command.QuietProgress(), **FEW)) == [100, 300]
    assert "waiting: " in capsys.readouterr().err
    with pytest.raises(UsageError, match="--policy"):
        moegeo_cli.watch(run, policy="none")
    with pytest.raises(UsageError, match="--unit"):
        next(moegeo_cli.watch(run, fisher="categorical", unit="sequence"))


def test_a_change_of_the_verdict_is_said_rung_and_acted_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = Looks(
        lambda: lose_a_router(save(run, 200)), lambda: save(run, 300), nothing,
    )  # fmt: skip
    monkeypatch.setattr(api.time, "sleep", looks)
    monkeypatch.setattr(command, "ring", lambda: "\a")
    monkeypatch.setenv("OUT", str(run.parent / "told"))
    act = 'echo "$MOEGEO_STEP $MOEGEO_BEFORE $MOEGEO_VERDICT $MOEGEO_RUN" >> "$OUT"; exit 3'
    done = call(
        capsys, "watch", run, "--max-tokens", "512", "--interval", "1", "--on-change", act,
        "--log", f"jsonl:{run.parent}/log.jsonl",
    )  # fmt: skip
    assert done.code == 130
    first, second, third = done.out.splitlines()
    before = first.split()[2]
    assert before != "failing"
    assert "was" not in first
    assert second.split()[2] == "failing"
    assert f"was {before}; router-zero" in second
    assert second.endswith("\a")
    assert third.split()[2] != "failing"
    assert "was failing" in third
    told = (run.parent / "told").read_text().splitlines()
    assert told[0] == f"200 {before} failing {run}"
    assert len(told) == 2
    assert done.err.count("--on-change ended with exit code 3") == 2
    rows = [json.loads(line) for line in (run.parent / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [100, 200, 300]
    assert rows[1]["moegeo/verdict"] == 2


def test_a_sink_that_fails_does_not_end_the_watch(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run.parent / "log.jsonl"
    looks = Looks(nothing, lambda: (log.rmdir(), save(run, 200)), nothing)
    monkeypatch.setattr(api.time, "sleep", looks)
    real = sinks.open_places
    monkeypatch.setattr(sinks, "open_places", lambda said: (real(said), log.mkdir())[0])
    done = call(capsys, "watch", run, "--max-tokens", "512", "--log", f"jsonl:{log}")
    assert [line.split()[1] for line in done.out.splitlines()] == ["100", "200"]
    assert "error[MG-E041]: " in done.err
    assert [json.loads(x)["step"] for x in log.read_text().splitlines()] == [100, 200]


def test_a_checkpoint_without_a_step_is_shown_by_its_name(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE / "checkpoint-100", tmp_path / "model")
    (tmp_path / "model" / "trainer_state.json").unlink(missing_ok=True)
    [found] = itertools.islice(moegeo_cli.watch(tmp_path / "model", interval=0, **FEW), 1)
    assert found.checkpoint.step is None
    assert not found.changed
    assert command.describe(found).split()[1] == found.verdict.status
