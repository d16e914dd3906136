"""The array of jobs in docs/how-to/scale.md, as it stands there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_ci_recipes import with_moegeo

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "sample_checkpoints" / "unbalanced-mixtral"


@pytest.fixture
def scripts(tmp_path: Path) -> list[Path]:
    """measure.sh and judge.sh."""
    text = (ROOT / "docs" / "how-to" / "scale.md").read_text()
    found = re.findall(r"```bash\n(#!.*?)```", text, flags=re.DOTALL)
    paths = [tmp_path / "measure.sh", tmp_path / "judge.sh"]
    for path, script in zip(paths, found, strict=True):
        path.write_text(script)
    return paths


@pytest.mark.slow
def test_jobs_that_share_a_store_give_what_one_call_gives(
    tmp_path: Path, scripts: list[Path]
) -> None:
    measure, judge = scripts
    run, shared = tmp_path / "run", tmp_path / "shared"
    run.mkdir()
    (tmp_path / "moegeo.toml").write_text("max-tokens = 1500\n")  # quicker than the default
    for step in (0, 100, 200):
        (run / f"checkpoint-{step}").symlink_to(SAMPLE / f"checkpoint-{step}")
    tasks = [
        subprocess.Popen(
            ["bash", measure, run, shared], env=with_moegeo(SLURM_ARRAY_TASK_ID=str(task)),
            cwd=tmp_path,
            stderr=subprocess.PIPE, text=True,
        )
        for task in range(3)
    ]  # fmt: skip
    for task in tasks:
        _, words = task.communicate(timeout=300)
        assert task.returncode == 0, words
        assert words.count(" tokens\n") == 1  # its own checkpoint, and no other
    final = subprocess.run(
        ["bash", judge, run, shared],
        env=with_moegeo(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert final.stderr.count("already measured") == 3
    assert " tokens" not in final.stderr
    alone = tmp_path / "alone"
    subprocess.run(["bash", judge, run, alone], env=with_moegeo(), cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip
    assert (shared / "report.json").read_bytes() == (alone / "report.json").read_bytes()
