"""Which checkpoint a run is compared with, and when that is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.commands.analyze.architectures import choice_differences, refuse_mixed
from moegeo_cli.commands.analyze.choosing_baseline import choose_baseline, refuse_other_routers
from moegeo_cli.errors import BaselineError, UsageError
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.models.given import Models
from tests.traces import architecture_of, measured_of


def run_of(*steps: int | None) -> RunFolder:
    """A run whose files nothing opens."""
    checkpoints = tuple(
        Checkpoint(Path(f"/run/checkpoint-{s}"), f"checkpoint-{s}", step=s) for s in steps
    )
    for checkpoint in checkpoints:
        checkpoint.__dict__["files"] = SimpleNamespace(layout="transformers")
    return RunFolder("run", Path("/run"), len(steps) == 1, checkpoints)


class Other(Models):
    """Opens any path as one run."""

    def __init__(self, found: RunFolder) -> None:
        super().__init__()
        self.found = found

    def open(self, path: Path | str) -> RunFolder:
        return self.found


def test_step_0_is_the_baseline_unless_another_was_asked_for() -> None:
    run = run_of(0, 100, 200)
    assert choose_baseline(run, None, Models()) == (run.checkpoints[0], None)
    assert choose_baseline(run, "100", Models()) == (run.checkpoints[1], None)
    assert choose_baseline(run, "none", Models()) == (None, "no baseline was asked for")
    assert choose_baseline(run, "init", Models()) == (None, None)


def test_without_step_0_the_reason_says_what_to_ask_for() -> None:
    found, reason = choose_baseline(run_of(100, 200), None, Models())
    assert found is None
    assert reason == "the run has no step-0 checkpoint; use --baseline init, STEP or PATH"


def test_a_step_that_the_run_lacks_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(BaselineError, match="the run has no checkpoint of step 150") as error:
        choose_baseline(run_of(100, 200), "150", Models())
    assert error.value.found == "steps 100, 200"


def test_another_run_gives_its_first_checkpoint_under_a_name_of_its_own() -> None:
    run, other = run_of(100), run_of(5, 10)
    found, _ = choose_baseline(run, "elsewhere", Other(other))
    assert found is not None
    assert (found.path, found.relative) == (other.checkpoints[0].path, "baseline:run/checkpoint-5")
    single = run_of(7)
    found, _ = choose_baseline(run, "elsewhere", Other(single))
    assert found is not None
    assert found.relative == "baseline:checkpoint-7"
    assert single.checkpoints[0].relative == "checkpoint-7", "the other keeps its own"


def test_a_baseline_of_other_routers_is_refused_with_what_differs() -> None:
    run = measured_of(1)
    refuse_other_routers(run, measured_of(2))
    with pytest.raises(BaselineError, match="other routers than the run") as fewer:
        refuse_other_routers(run, measured_of(2, layers=(0,)))
    assert fewer.value.found == "1 routers against 2"
    with pytest.raises(BaselineError) as moved:
        refuse_other_routers(run, measured_of(2, layers=(0, 3)))
    assert moved.value.found == (
        "model.layers.3.mlp.gate of 4 x 6 against model.layers.1.mlp.gate of 4 x 6"
    )


def test_architectures_that_choose_otherwise_are_told_apart_by_name() -> None:
    a, b = architecture_of(), architecture_of("sigmoid", experts=8, top_k=4)
    assert choice_differences(a, a) == []
    assert choice_differences(a, b) == [
        "experts (E): 4 against 8", "chosen experts per token (K): 2 against 4",
        "scoring: softmax against sigmoid",
    ]  # fmt: skip
    run = run_of(100, 200)
    refuse_mixed(run.checkpoints[0], a, run.checkpoints[1], a)
    with pytest.raises(BaselineError, match="checkpoint-100 is of another architecture than") as no:
        refuse_mixed(run.checkpoints[0], a, run.checkpoints[1], b)
    assert no.value.found is not None
    assert "experts (E): 4 against 8" in no.value.found


@pytest.mark.parametrize(
    ("steps", "latest", "chosen"),
    [
        (None, False, [0, 50, 100]), ("50", False, [50]), ("50-100", False, [50, 100]),
        ("0,100", True, [100]), ([0, 50], False, [0, 50]), (None, True, [100]),
    ],
)  # fmt: skip
def test_checkpoints_are_chosen_by_step(steps: Any, latest: bool, chosen: list[int]) -> None:
    assert [c.step for c in choose_checkpoints(run_of(0, 50, 100), steps, latest)] == chosen


def test_steps_that_nothing_has_are_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no checkpoint has one of these steps") as error:
        choose_checkpoints(run_of(0, 50), "60-70", False)
    assert error.value.found == "steps 0, 50"
