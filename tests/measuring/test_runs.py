"""A run's arrays without a store, and fresh initialisations over a run that grows."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moegeo_cli import analyze
from moegeo_cli.measuring import measurer, temporary_arrays
from moegeo_cli.measuring.temporary_arrays import TemporaryArrays

STEPS = (0, 10, 20)


@pytest.fixture
def run(tmp_path: Path, tiny: Callable[..., Path]) -> Path:
    for step in STEPS:
        shutil.copytree(tiny("mixtral", step), tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.jsonl"
    rows = np.random.default_rng(0).integers(0, 48, (6, 16)).tolist()
    path.write_text("".join(f'{{"input_ids": {row}}}\n' for row in rows))
    return path


def test_only_what_was_laid_aside_last_stays_in_memory() -> None:
    own, held = TemporaryArrays(), []
    readers = []
    for place in range(4):
        arrays = {"a": np.full(3, place), "b": np.arange(6.0).reshape(2, 3).T}
        held.append(weakref.ref(arrays["a"]))
        readers.append(own.keep(str(place), arrays))
        del arrays
    gc.collect()
    assert [r() is not None for r in held] == [False, False, False, True]
    folder = Path(own._folder.name) if own._folder else Path()
    del own
    for place, read in enumerate(readers):
        np.testing.assert_array_equal(read()["a"], np.full(3, place))
        np.testing.assert_array_equal(read()["b"], np.arange(6.0).reshape(2, 3).T)
    assert folder.is_dir()
    del readers, read
    gc.collect()
    assert not folder.exists()


def test_what_cannot_be_written_is_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = TemporaryArrays()
    monkeypatch.setattr(
        temporary_arrays.TemporaryArrays, "_file", lambda _, key: tmp_path / "absent" / key
    )
    readers = [own.keep(name, {"a": np.array([1.0])}) for name in "xyz"]
    assert [read()["a"].item() for read in readers] == [1.0] * 3


def test_a_run_without_a_store_has_the_same_record(run: Path, probe: Path) -> None:
    kept = analyze(run, probe=probe)
    assert analyze(run, probe=probe, cache=False) == kept


def test_initialisations_are_measured_once_a_run(
    run: Path, probe: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path]
) -> None:
    drawn: list[int] = []
    real = measurer.Measurer.initialise

    def initialise(self: measurer.Measurer, *arguments: object) -> object:
        drawn.append(1)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measurer.Measurer, "initialise", initialise)
    analyze(run, probe=probe, baseline="init")
    assert len(drawn) == 8
    shutil.copytree(tiny("mixtral", 30), run / "checkpoint-30")
    grown = analyze(run, probe=probe, baseline="init")
    assert len(drawn) == 8
    assert grown == analyze(run, probe=probe, baseline="init", cache=False)
    analyze(run, probe=probe, baseline="init", dtype="bfloat16")
    assert len(drawn) == 24
