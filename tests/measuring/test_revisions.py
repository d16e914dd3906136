"""Revisions of the Hub one after another; what would be downloaded is noted in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.hub_notes import HubNote
from moegeo_cli.errors import UsageError
from moegeo_cli.measuring import revisions
from moegeo_cli.measuring.revisions import each_revision, fetch_weights, store_options_for

STEPS = (0, 10, 20)


def run_at(folder: Path, *steps: int, noted: bool = True) -> RunFolder:
    """A run of revisions, as the Hub's folders on this machine have it."""
    found = []
    for step in steps:
        place = folder / f"step{step}"
        place.mkdir()
        if noted:
            HubNote("lab/moe", place.name, "c" * 40, {}, {}).write(place)
        found.append(Checkpoint(place, place.name, step=step))
    return RunFolder("moe", folder, len(steps) == 1, tuple(found))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose weights were asked for."""
    asked: list[str] = []
    monkeypatch.setattr(revisions, "fetch", lambda folders: asked.extend(f.name for f in folders))
    return asked


def test_each_is_handled_alone_right_after_its_download(tmp_path: Path, fetched: list[str]) -> None:
    run, done = run_at(tmp_path, *STEPS), []

    def do(one: RunFolder) -> None:
        assert one.is_single
        assert fetched[-1] == one.newest.relative
        assert one.newest not in run.checkpoints, "opened anew: its weights are there now"
        done.append(one.newest.step)

    each_revision(run, do, lambda one: one.newest.step == 10)
    assert done == [0, 20], "what is kept is not fetched"
    assert fetched == ["step0", "step20"]


@pytest.mark.parametrize(
    ("choice", "steps"),
    [
        ({"latest": True}, [20]),
        ({"latest": True, "also": 0}, [20, 0]),
        ({"steps": "0-10", "also": 10}, [0, 10]),
        ({"steps": [10], "also": 7}, [10]),
    ],
)
def test_chosen_steps_and_the_baseline_once(
    choice: dict[str, object], steps: list[int], tmp_path: Path, fetched: list[str]
) -> None:
    done: list[int | None] = []
    each_revision(
        run_at(tmp_path, *STEPS), lambda one: done.append(one.newest.step), lambda one: False,
        **choice,  # type: ignore[arg-type]
    )  # fmt: skip
    assert done == steps
    assert fetched == [f"step{step}" for step in steps]


def test_a_run_on_this_machine_downloads_nothing(tmp_path: Path, fetched: list[str]) -> None:
    run = run_at(tmp_path, *STEPS, noted=False)
    each_revision(run, lambda one: pytest.fail("called"), lambda one: False)
    assert fetched == []
    own = {"cache": False, "cache_dir": None}
    with store_options_for([run, None], own, ranks=object()) as options:
        assert options == own


def test_a_store_outlasts_each_revisions_weights(tmp_path: Path) -> None:
    run = run_at(tmp_path, *STEPS)
    with store_options_for([None, run], {"cache": True, "cache_dir": None}) as options:
        assert options["cache_dir"] == tmp_path / ".moegeo"
    with store_options_for([run], {"cache": True, "cache_dir": "mine"}) as options:
        assert options["cache_dir"] == "mine"
    with store_options_for([run], {"cache": False, "cache_dir": None}) as options:
        assert options["cache"] is True
        kept = Path(options["cache_dir"])
        assert kept.is_dir()
    assert not kept.exists(), "nothing was to be kept"


def test_ranks_and_several_revisions_of_a_lens_are_refused(
    tmp_path: Path, fetched: list[str]
) -> None:
    run = run_at(tmp_path, *STEPS)
    storage = {"cache": True, "cache_dir": None}
    with (
        pytest.raises(UsageError, match="under torchrun"),
        store_options_for([run], storage, ranks=object()),
    ):
        pass
    with pytest.raises(UsageError, match="one revision of the Hub") as error:
        fetch_weights(run)
    assert "step20" in (error.value.hint or "")
    assert fetched == []
    (tmp_path / "other").mkdir()
    fetch_weights(run_at(tmp_path / "other", 5))
    assert fetched == ["step5"]
