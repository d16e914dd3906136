"""What a user installs: the wheel and the sdist, and `moegeo demo` from them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from moegeo_cli.commands.demo import api
from moegeo_cli.errors import PathError
from tests.command import call

hatchling = pytest.importorskip("hatchling.build")
ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
STEPS = (0, 100, 200, 300, 400)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, by the build backend itself."""
    folder, here = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / str(hatchling.build_wheel(str(folder)))
    finally:
        os.chdir(here)


def test_the_wheel_holds_every_file_of_the_package_and_the_run_of_the_demo(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "moegeo_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    run = {
        f"moegeo_cli/samples/{api.RUN}/checkpoint-{step}/{name}"
        for step in STEPS
        for name in ("config.json", "model.safetensors", "trainer_state.json")
    }
    assert package | run | {"moegeo/__init__.py", "moegeo/py.typed"} == {
        name for name in held if ".dist-info/" not in name
    }
    suffixes = {Path(name).suffix for name in package}
    assert suffixes == {".py", ".typed", ".toml", ".jsonl", ".html", ".css", ".js"}
    assert wheel.stat().st_size < 4_000_000


def test_the_sdist_can_be_built_and_tested_from(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import hatchling.build as b; b.build_sdist({str(tmp_path)!r})"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {"pyproject.toml", "constraints.txt", "LICENSE", "tests/conftest.py"} <= names
    assert f"sample_checkpoints/{api.RUN}/checkpoint-400/model.safetensors" in names
    assert not any(".moegeo" in name or "__pycache__" in name for name in names)


def test_the_demo_writes_only_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = api.demo_run()
    before = sorted(run.rglob("*"))
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "demo.html"
    told = call(capsys, "demo", "--max-tokens", "512", "-o", page)
    assert told.code == 0, told.err
    assert str(run) in told.err
    assert page.read_text().startswith("<!doctype html>")
    assert [*tmp_path.iterdir()] == [page]
    assert sorted(run.rglob("*")) == before


def test_the_demo_shows_the_mistake_that_its_run_was_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("demo", "--max-tokens", "2048", "--cache-dir", tmp_path)
    first = call(capsys, *command)
    assert first.code == 0, first.err
    assert "The balance loss is switched off." in first.out
    assert len(first.out.splitlines()) <= 24
    again = call(capsys, *command)
    assert again.out == first.out
    assert "checkpoint-0" in first.err
    assert "checkpoint-0" not in again.err, "nothing is measured again"


def test_an_installation_without_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.moegeo_cli, "__file__", str(tmp_path / "moegeo_cli" / "__init__.py"))
    with pytest.raises(PathError, match="sample run is missing"):
        api.demo_run()


@pytest.mark.slow
def test_a_fresh_environment_installs_the_wheel_and_runs_the_demo(tmp_path: Path) -> None:
    """As a release: sdist and wheel by `build`, pip into an environment of its own, another folder.

    Constraints are in force for pip everywhere, as CONTRIBUTING.md asks for.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PIP_CONSTRAINT"] = str(CONSTRAINTS)
    environment["NO_COLOR"] = "1"

    def do(*command: object, cwd: Path = tmp_path) -> str:
        done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = [tmp_path / name / "bin" / "python" for name in ("builder", "fresh")]
    for path in python:
        do(sys.executable, "-m", "venv", path.parents[1])
    do(python[0], "-m", "pip", "install", "--quiet", "build")
    do(python[0], "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert len([*(tmp_path / "dist").glob("*.tar.gz")]) == 1
    do(python[1], "-m", "pip", "install", "--quiet", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moegeo = python[1].with_name("moegeo")
    out = do(moegeo, "demo", cwd=elsewhere)
    assert "The balance loss is switched off." in out
    assert [*elsewhere.iterdir()] == []
    imported = do(python[1], "-c", "import moegeo; print(moegeo.demo.__module__, moegeo.__file__)",
                  cwd=elsewhere)  # fmt: skip
    assert str(tmp_path / "fresh") in imported
    page = elsewhere / "demo.html"
    do(moegeo, "demo", "--max-tokens", "2048", "-o", page, cwd=elsewhere)
    assert page.read_text().startswith("<!doctype html>")
