"""The recipes of docs/how-to/ci.md, run as they are printed, on a run that grows meanwhile."""

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

from tests.command import call

DOC = Path(__file__).parents[2] / "docs" / "how-to" / "ci.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC.read_text(), flags=re.DOTALL)


def with_moegeo(**more: str) -> dict[str, str]:
    """An environment in which `moegeo` is the one of this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **more}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """A real Trainer run of a tiny model, judged by the callback after each of its saves."""
    import torch
    from transformers import Trainer, TrainingArguments

    from tests.tiny_models import build_tiny

    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[0], str(DOC), "exec"), scope)
    [callback] = scope["callbacks"]
    assert callback.options == {"max_tokens": 8192}
    callback_class = scope["MoegeoCallback"]
    seen: list[dict[str, object]] = []

    class Watching(callback_class):  # type: ignore[misc, valid-type]
        def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            super().on_save(args, state, control, **kwargs)
            entries = list((Path(args.output_dir) / ".moegeo").glob("*/record.json"))
            seen.append({"step": state.global_step, "entries": len(entries)})

    out = tmp_path_factory.mktemp("grown")
    torch.manual_seed(0)
    model = build_tiny("mixtral", vocab_size=256)
    rows = [{"input_ids": r, "labels": r} for r in torch.randint(0, 256, (64, 24))]
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out), max_steps=6, save_steps=2, per_device_train_batch_size=8,
            report_to=[], logging_steps=1, use_cpu=True, disable_tqdm=True, save_only_model=True,
        ),
        train_dataset=rows,
        callbacks=[Watching(max_tokens=1024)],
    ).train()  # fmt: skip
    return out, seen


def test_the_callback_measures_each_save_once(
    grown: tuple[Path, list[dict[str, object]]],
) -> None:
    _, seen = grown
    assert [s["step"] for s in seen] == [2, 4, 6]
    assert [s["entries"] for s in seen] == [1, 2, 3]


@pytest.mark.slow
def test_the_shell_gate_judges_the_run(
    grown: tuple[Path, list[dict[str, object]]], tmp_path: Path
) -> None:
    out, _ = grown
    script = tmp_path / "gate.sh"
    script.write_text(blocks("bash")[0])
    done = subprocess.run(
        ["bash", str(script), str(out)], env=with_moegeo(), capture_output=True, text=True
    )
    report = json.loads((out / "moegeo.json").read_text())
    expected = {"failing": 1}.get(report["verdict"]["status"], 0)
    assert done.returncode == expected, done.stderr
    missing = subprocess.run(
        ["bash", str(script), str(tmp_path / "nowhere")],
        env=with_moegeo(), capture_output=True, text=True,
    )  # fmt: skip
    assert missing.returncode == 2
    assert "nowhere does not exist" in missing.stderr


def test_the_shell_gate_works_at_every_save_with_a_config_in_the_runs_folder(
    grown: tuple[Path, list[dict[str, object]]], tmp_path: Path
) -> None:
    """As a training script leaves it: config and tokenizer beside the checkpoints.

    The first save has been measured; the second one the gate measures.
    """
    run = tmp_path / "run"
    saves = sorted(grown[0].glob("checkpoint-*"))
    for entry in (grown[0] / ".moegeo").glob("*/record.json"):
        if json.loads(entry.read_text())["content"]["step"] == 2:
            shutil.copytree(entry.parent, run / ".moegeo" / entry.parent.name)
    shutil.copy(saves[0] / "config.json", run / "config.json")
    script = tmp_path / "gate.sh"
    script.write_text(blocks("bash")[0])
    (tmp_path / "moegeo.toml").write_text("max-tokens = 1024\n")
    counts, measured = [], []
    for save in [saves[0], saves[1], None]:  # the last time, nothing is new
        if save is not None:
            shutil.copytree(save, run / save.name)
        done = subprocess.run(
            ["bash", str(script), str(run)], env=with_moegeo(), cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode in {0, 1}, done.stderr
        counts.append(len(json.loads((run / "moegeo.json").read_text())["checkpoints"]))
        measured.append(len(re.findall(r"^ .*: [\d,]+ tokens$", done.stderr, re.MULTILINE)))
    assert counts == [1, 2, 2]
    assert measured == [0, 1, 0]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_no_report_replaces_a_file_of_a_checkpoint(
    grown: tuple[Path, list[dict[str, object]]], name: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    here = tmp_path / "checkpoint-2"
    shutil.copytree(grown[0] / "checkpoint-2", here)
    (here / "tokenizer.json").write_text("{}")
    before = (here / name).read_bytes()
    done = call(capsys, "analyze", here, "--output", here / name, "--format", "json")
    assert done.code == 2
    assert "is not overwritten" in done.err
    assert "[1/1]" not in done.err  # said before the work
    assert (here / name).read_bytes() == before


def test_the_workflow_annotates_and_keeps_the_report(
    grown: tuple[Path, list[dict[str, object]]], tmp_path: Path
) -> None:
    yaml = pytest.importorskip("yaml")
    out, _ = grown
    job = yaml.safe_load(blocks("yaml")[0])["jobs"]["moegeo"]
    summary = tmp_path / "summary.md"
    (tmp_path / "moegeo.toml").write_text("max-tokens = 1024\n")
    environment = with_moegeo(RUN=str(out), GITHUB_STEP_SUMMARY=str(summary), GITHUB_ACTIONS="true")
    for step in job["steps"]:
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], env=environment, cwd=tmp_path,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode in {0, 1, 3}, done.stderr
        for line in done.stdout.splitlines():
            assert re.match(r"::(error|warning|notice)", line), line
    assert json.loads((tmp_path / "moegeo.json").read_text())["format"]["name"] == "moegeo.run"
    assert summary.read_text().strip()
