"""A run is measured and its files are checked: in which order, and revisions of the Hub alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.hub_notes import HubNote
from moegeo_cli.commands.analyze import revisions
from moegeo_cli.commands.analyze.revisions import measure_and_check
from moegeo_cli.verdict.thresholds import load_thresholds

LIMITS = load_thresholds()
STORAGE = {"cache": True, "cache_dir": None}


class Work:
    """Notes what is done to which checkpoints, in place of doing it."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []
        self.stored: set[str] = set()

    def check_files(self, run: RunFolder, models: Any, limits: Any, **how: Any) -> Any:
        assert limits is LIMITS
        assert how["progress"] == "listener"
        self.done.append(("check", *(c.relative for c in run.checkpoints)))
        return SimpleNamespace(outcomes={c.relative: "fine" for c in run.checkpoints})

    def measure_folder(
        self, run: RunFolder, *, baseline: str | None,
        before_measuring: Callable[[], None] = lambda: None, **_: Any,
    ) -> str:  # fmt: skip
        before_measuring()
        self.done.append(("measure", *(c.relative for c in run.checkpoints), str(baseline)))
        return "the analysis"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    found = Work()
    monkeypatch.setattr(revisions, "check_files", found.check_files)
    monkeypatch.setattr(revisions, "measure_folder", found.measure_folder)
    for name in ("are_checked", "is_measured"):
        monkeypatch.setattr(revisions, name, lambda run, *_: run.newest.relative in found.stored)
    monkeypatch.setattr(
        "moegeo_cli.measuring.revisions.fetch",
        lambda folders: found.done.append(("fetch", *(f.name for f in folders))),
    )
    return found


def run_at(folder: Path, *, hub: bool = False) -> RunFolder:
    found = []
    for step in (0, 10):
        place = folder / f"step{step}"
        place.mkdir(parents=True)
        if hub:
            HubNote("lab/moe", place.name, "c" * 40, {}, {}).write(place)
        found.append(Checkpoint(place, place.name, step=step))
    return RunFolder("moe", folder, False, tuple(found))


def ask(run: RunFolder, limits: Any = LIMITS, baseline: str | None = None, **more: Any) -> Any:
    models = more.pop("models", SimpleNamespace(open=None))
    shared = {"models": models, "progress": "listener"}
    return measure_and_check(run, limits, baseline, shared, STORAGE, **more)


def test_files_are_checked_before_anything_is_measured(work: Work, tmp_path: Path) -> None:
    measured, outcomes = ask(run_at(tmp_path))
    assert work.done == [("check", "step0", "step10"), ("measure", "step0", "step10", "None")]
    assert measured == "the analysis"
    assert outcomes == {"step0": "fine", "step10": "fine"}


def test_without_limits_no_file_is_checked(work: Work, tmp_path: Path) -> None:
    assert ask(run_at(tmp_path), None) == ("the analysis", {})
    assert work.done == [("measure", "step0", "step10", "None")]


def test_a_revision_is_checked_and_measured_while_its_weights_are_there(
    work: Work, tmp_path: Path
) -> None:
    ask(run_at(tmp_path, hub=True))
    alone = [
        step
        for name in ("step0", "step10")
        for step in (("fetch", name), ("check", name), ("measure", name, "none"))
    ]
    whole = [("check", "step0", "step10"), ("measure", "step0", "step10", "None")]
    assert work.done == alone + whole


def test_what_is_stored_is_not_downloaded_but_for_initialisations(
    work: Work, tmp_path: Path
) -> None:
    run = run_at(tmp_path, hub=True)
    work.stored = {"step0", "step10"}
    ask(run)
    assert not any(kind == "fetch" for kind, *_ in work.done)
    work.done.clear()
    ask(run, baseline="init", latest=True)  # initialisations are not in the checkpoint's entry
    alone = [("fetch", "step10"), ("check", "step10"), ("measure", "step10", "init")]
    assert work.done[:3] == alone


def test_the_baseline_is_fetched_too_by_its_step_or_as_another_run(
    work: Work, tmp_path: Path
) -> None:
    run = run_at(tmp_path / "run", hub=True)
    ask(run, latest=True)
    assert [name for kind, *name in work.done if kind == "fetch"] == [["step10"], ["step0"]]
    work.done.clear()
    opened: list[str] = []
    other = run_at(tmp_path / "other", hub=True)
    models = SimpleNamespace(open=lambda name: (opened.append(name), other)[1])
    work.stored = {"step10"}
    ask(run, baseline="hf://lab/base", steps="10", models=models)
    assert opened == ["hf://lab/base"]
    assert [name for kind, *name in work.done if kind == "fetch"] == [["step0"]]
