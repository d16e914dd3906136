"""The GitHub action and the pre-commit hook: their steps are run as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.command import call

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "actions" / "moegeo"
ACTION = yaml.safe_load((FOLDER / "action.yml").read_text())
SAMPLE = ROOT / "sample_checkpoints" / "unbalanced-mixtral"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints of a sample."""
    for step in (0, 400):
        shutil.copytree(SAMPLE / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def break_router(run: Path) -> None:
    file = run / "checkpoint-400" / "model.safetensors"
    tensors = load_file(file)
    [name, *_] = sorted(n for n in tensors if "gate" in n and tensors[n].shape[0] == 8)
    tensors[name][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def act(step: dict[str, Any], here: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """A step, with the inputs given and the defaults of the others, as GitHub runs it."""
    given = {name: told.get("default", "") for name, told in ACTION["inputs"].items()} | inputs
    own = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in step["env"].items()
    }
    assert "${{" not in step["run"]  # an input is data, never a part of a script
    told = {n: str(here / n.lower()) for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={**os.environ, "PATH": path, **told, **own}, cwd=here, capture_output=True, text=True,
    )  # fmt: skip


def outputs(here: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (here / "github_output").read_text().splitlines())


def test_the_action_is_of_the_form_that_github_reads() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert all(step["shell"] == "bash" and step["name"] for step in ACTION["runs"]["steps"])
    ids = {step.get("id") for step in ACTION["runs"]["steps"]}
    for told in ACTION["outputs"].values():
        [name] = re.findall(r"steps\.(\w+)\.outputs\.\w+", told["value"])
        assert name in ids
    page = (ROOT / "docs" / "how-to" / "ci.md").read_text()
    assert all(f"| `{name}` |" in page for name in ACTION["inputs"])
    assert (FOLDER / "../../.." / "pyproject.toml").resolve() == ROOT / "pyproject.toml"


def test_its_step_judges_a_run(run: Path, tmp_path: Path) -> None:
    judge = ACTION["runs"]["steps"][1]
    done = act(judge, tmp_path, path="run", command="check", options="--quick --no-cache")
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == {"status": "healthy", "report": "moegeo.json"}
    assert json.loads((tmp_path / "moegeo.json").read_text())["format"]["name"] == "moegeo.check"
    assert done.stdout.startswith("::notice")
    assert "run" in (tmp_path / "github_step_summary").read_text()
    break_router(run)
    (tmp_path / "github_output").unlink()
    done = act(judge, tmp_path, path="run", command="check", report="own name.json")
    assert done.returncode == 1, done.stderr
    assert outputs(tmp_path) == {"status": "failing", "report": "own name.json"}
    assert "::error" in done.stdout


@pytest.mark.parametrize(("code", "passes"), [(3, True), (2, False), (70, False), (130, False)])
def test_its_step_passes_an_inconclusive_run_and_fails_at_errors(
    code: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit codes alone: in the place of moegeo stands a script that has them."""
    program = tmp_path / "bin" / "moegeo"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/bash\n[ "$1" = report ] && exit 0\n[ "$2" = \'a b; touch injected\' ] || exit 9\n'
        f'echo \'{{"verdict": {{"status": "inconclusive"}}}}\' > moegeo.json; exit {code}\n'
    )
    program.chmod(0o755)
    judge = {**ACTION["runs"]["steps"][1]}
    judge["run"] = f'PATH="{program.parent}:$PATH"\n{judge["run"]}'
    done = act(judge, tmp_path, path="a b; touch injected", options="--latest --max-tokens 512")
    assert done.returncode == (0 if passes else code)
    assert (tmp_path / "github_output").exists() is passes
    assert ("::warning title=moegeo::inconclusive" in done.stdout) is passes
    assert not (tmp_path / "injected").exists()


def test_the_hook_of_pre_commit_fails_at_a_fault(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *words = hook["entry"].split()
    assert program == "moegeo"
    assert not hook["pass_filenames"]
    for name, counts in {
        "model.safetensors": True, "a/model-00001-of-00002.safetensors": True, "config.json": True,
        "a/config.json": True, "tokenizer_config.json": False, "README.md": False,
    }.items():  # fmt: skip
        assert bool(re.search(hook["files"], name)) is counts, name
    monkeypatch.chdir(run)
    assert call(capsys, *words, *hook["args"]).code == 0
    assert not (run / ".moegeo").exists()
    break_router(run)
    failed = call(capsys, *words, *hook["args"])
    assert failed.code == 1
    assert "FAILING   Routing is failing." in failed.out
    assert "A router holds NaN or infinity." in failed.out
