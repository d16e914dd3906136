"""Whatever a command asks of a run, each checkpoint's files are opened once."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli import analyze, check, compare, experts, inspect, invariance, routing
from moegeo_cli.checkpoints import weights
from tests.tiny_models import save_tiny

FIVE = 5
READ = ("config.json", "trainer_state.json")
opened: Counter[str] = Counter()
watched: list[Path] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: what moegeo opens of the run; transformers reads config.json by itself."""
    if event != "open" or not watched or not isinstance(arguments[0], str | os.PathLike):
        return
    path = Path(os.fspath(arguments[0]))
    if path.name in READ and watched[0] in path.parents:
        frame = sys._getframe(1)
        while "moegeo_cli" not in frame.f_code.co_filename:
            if "transformers" in frame.f_code.co_filename or frame.f_back is None:
                return
            frame = frame.f_back
        opened[path.name] += 1


sys.addaudithook(note)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for step in range(0, 10 * FIVE, 10):
        path = folder / f"checkpoint-{step}"
        save_tiny("mixtral", path, step)
        state = {"global_step": step, "max_steps": 40, "log_history": [{"step": step, "loss": 3.0}]}
        (path / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def count(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, int]]]:
    """What was opened since the last call."""
    real = weights.read_header

    def read_header(path: Path) -> Any:
        opened["weights"] += 1
        return real(path)

    monkeypatch.setattr(weights, "read_header", read_header)
    watched.append(run)

    def take() -> dict[str, int]:
        found = dict(opened)
        opened.clear()
        return found

    opened.clear()
    yield take
    watched.clear()


ONCE = {"weights": FIVE, "config.json": FIVE, "trainer_state.json": FIVE}


def test_a_run_is_opened_once_cold_and_warm(
    run: Path, probe: Path, count: Callable[[], dict[str, int]]
) -> None:
    for options in ({"cache": False}, {}, {}):
        analyze(run, probe=probe, **options)
        assert count() == ONCE
        check(run, **options)
        assert count() == ONCE


@pytest.mark.parametrize(
    "ask",
    [
        lambda run, _: inspect(run),
        lambda run, probe: experts(run, probe=probe, cache=False),
        lambda run, probe: routing(run, probe=probe, cache=False),
        lambda run, probe: invariance(run, probe=probe),
    ],
    ids=["inspect", "experts", "routing", "invariance"],
)
def test_other_commands_open_it_once(
    ask: Callable[[Path, Path], object],
    run: Path,
    probe: Path,
    count: Callable[[], dict[str, int]],
) -> None:
    ask(run, probe)
    assert count() == ONCE


def test_two_runs_are_opened_once_each(
    run: Path, probe: Path, count: Callable[[], dict[str, int]]
) -> None:
    compare(run, run, probe=probe)
    assert count() == {name: 2 * times for name, times in ONCE.items()}
