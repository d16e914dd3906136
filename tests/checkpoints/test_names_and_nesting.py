"""Steps out of words, and runs and checkpoints that lie deeper than the folder that is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli import analyze
from moegeo_cli.checkpoints.discover import RunFolder, open_run
from moegeo_cli.checkpoints.step_names import is_date, read_name
from moegeo_cli.errors import IncompleteCheckpointError, NoCheckpointError, UnsupportedLayoutError
from moegeo_cli.records import RunRecord
from tests.checkpoints.names_table import END, PAGE, START, table

Checkpoint = Callable[..., Path]


def steps(run: RunFolder) -> list[int | None]:
    return [checkpoint.step for checkpoint in run.checkpoints]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        # OLMo, OLMoE
        ("stage1-step1000-tokens5B", (1000, None, 5 * 10**9, "stage1")),
        ("stage2-ingredient1-step1000-tokens3B", (1000, None, 3 * 10**9, "stage2-ingredient1")),
        ("step1220000-tokens5117B", (1220000, None, 5117 * 10**9, None)),
        # Lightning, Composer, NeMo AutoModel, nanotron, nanochat
        ("epoch=3-step=2000", (2000, 3, None, None)),
        ("ep2-ba160-rank0", (160, 2, None, None)),
        ("epoch_0_step_10", (10, 0, None, None)),
        ("model_000500", (500, None, None, None)),
        ("iter-0001000-ckpt", (1000, None, None, None)),
        # sizes, widths, parts of words
        ("pretrain_768_moe", (None, None, None, None)),
        ("qwen3-30b-a3b-step-1000", (1000, None, None, None)),
        ("moe-8x7b-v0.1", (None, None, None, None)),
        ("model_768", (None, None, None, None)),
        ("step100k", (None, None, None, None)),
        ("step-1.5", (None, None, None, None)),
        ("step_1_step_2", (None, None, None, None)),
        ("footstep9", (None, None, None, None)),
        ("checkpoint-500-unfinished", (None, None, None, None)),
        # dates
        ("20241105", (None, None, None, None)),
        ("20241105-101112", (None, None, None, None)),
        ("v0-20241105-101112", (None, None, None, None)),
        ("20241399", (20241399, None, None, None)),
    ],
)
def test_what_names_tell(name: str, told: tuple[Any, ...]) -> None:
    found = read_name(name)
    assert (found.step, found.epoch, found.tokens, found.stage) == told


@pytest.mark.parametrize(
    "name", ["2024-11-05", "2024_11_05_10_11_12", "20241105T101112", "20241105"]
)
def test_dates(name: str) -> None:
    assert is_date(name)


def test_tokens_in_names_are_the_progress(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("step1000-tokens4B", "step2000-tokens8B"):
        checkpoint(to=f"run/{name}")
    run = open_run(tmp_path / "run")
    assert steps(run) == [1000, 2000]
    assert [c.training.tokens for c in run.checkpoints] == [4 * 10**9, 8 * 10**9]


def test_final_models_named_by_date_are_listed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("20241105", "20241106"):
        checkpoint(to=f"models/{name}")
    with pytest.raises(NoCheckpointError) as caught:
        open_run(tmp_path / "models")
    assert caught.value.found == "20241105 (mixtral); 20241106 (mixtral)"
    assert "moegeo compare" in str(caught.value.hint)


def test_epochs_order_where_nothing_tells_a_step(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for epoch in (10, 9):
        checkpoint(to=f"run/epoch-{epoch}")
    assert [c.relative for c in open_run(tmp_path / "run").checkpoints] == ["epoch-9", "epoch-10"]
    checkpoint(to="run/step-3")
    run = open_run(tmp_path / "run")
    assert steps(run) == [3]
    assert not run.has_gaps


def test_stages_in_one_folder_are_listed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("stage1-step100", "stage1-step200", "stage2-step100"):
        checkpoint(to=f"run/{name}")
    with pytest.raises(NoCheckpointError, match="2 stages") as caught:
        open_run(tmp_path / "run")
    assert "stage1 (2 checkpoints, stage1-step100 to stage1-step200)" in str(caught.value.found)
    assert steps(open_run(tmp_path / "run" / "stage2-step100")) == [100]


def test_runs_below_a_folder_are_listed_and_one_is_opened(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """ms-swift's layout."""
    for place in ("v0-20241105-101112", "v1-20241106-090000"):
        for step in (100, 200):
            checkpoint(to=f"output/qwen/{place}/checkpoint-{step}", global_step=step)
    one = open_run(tmp_path / "output" / "qwen" / "v0-20241105-101112")
    assert steps(one) == [100, 200]
    for top in ("output", "output/qwen"):
        with pytest.raises(NoCheckpointError, match="holds 2 runs") as caught:
            open_run(tmp_path / top)
        assert "v0-20241105-101112 (2 checkpoints, step 100 to 200)" in str(caught.value.found)
        assert str(caught.value.hint).startswith("give one of them: moegeo analyze ")
        assert caught.value.exit_code == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "output" / "qwen" / "v1-20241106-090000").rename(tmp_path / "other" / "v1")
    assert steps(open_run(tmp_path / "output")) == [100, 200]


def test_a_checkpoint_below_its_step(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """verl's layout."""
    for step in (0, 10, 20):
        checkpoint(to=f"run/global_step_{step}/actor/huggingface")
        (tmp_path / f"run/global_step_{step}/critic").mkdir()
    run = open_run(tmp_path / "run")
    assert steps(run) == [0, 10, 20]
    assert run.newest.relative == "global_step_20/actor/huggingface"
    for path in ("run/global_step_10", "run/global_step_10/actor/huggingface"):
        assert steps(open_run(tmp_path / path)) == [10]
    record = analyze(tmp_path / "run", baseline="none", latest=True, max_tokens=64,
                     probe=_probe(tmp_path))  # fmt: skip
    assert isinstance(record, RunRecord)
    assert record.newest.step == 20
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("10")
    assert steps(open_run(tmp_path / "run")) == [0, 10]
    with pytest.raises(IncompleteCheckpointError, match="still being written"):
        open_run(tmp_path / "run" / "global_step_20")


def test_the_page_holds_the_table_of_names() -> None:
    held = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert held == table(), "python -m tests.checkpoints.names_table writes it anew"


def _probe(folder: Path) -> Path:
    path = folder / "probe.jsonl"
    path.write_text(json.dumps({"input_ids": list(range(1, 33))}) + "\n")
    return path


def test_shards_of_verl_name_the_command(tmp_path: Path) -> None:
    actor = tmp_path / "run" / "global_step_5" / "actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_8_rank_0.pt").write_bytes(b"x")
    (actor / "huggingface").mkdir()
    (actor / "huggingface" / "config.json").write_text("{}")
    for path in (tmp_path / "run", tmp_path / "run" / "global_step_5"):
        with pytest.raises(UnsupportedLayoutError) as caught:
            open_run(path)
        assert "verl.model_merger" in str(caught.value.hint)


@pytest.mark.parametrize(
    "place",
    ["weights/step_{}", "checkpoints/step_{}/weights", "outputs/checkpoints/epoch_0_step_{}/model/"
     "consolidated", "checkpoints/checkpoint_{}"],
)  # fmt: skip
def test_other_layouts_that_nest(place: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """prime-rl, NeMo AutoModel, accelerate's save_state with a config beside it."""
    for step in (1, 2):
        checkpoint(to=f"run/{place.format(step)}")
    assert steps(open_run(tmp_path / "run")) == [1, 2]


@pytest.mark.parametrize("seal", ["trainer_state.json", "STABLE"])
def test_a_seal_that_the_newest_lacks(seal: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        folder = checkpoint(to=f"run/step_{step}")
        if step < 3:
            (folder / seal).write_text("{}")
    run = open_run(tmp_path / "run")
    assert steps(run) == [1, 2]
    assert run.has_gaps
    assert f"no {seal}" in run.skipped[0].reason


def test_a_mark_of_an_unfinished_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint(to=f"run/step_{step}")
    (tmp_path / "run" / "step_2-unfinished").write_text("")
    run = open_run(tmp_path / "run")
    assert steps(run) == [1]
    assert "step_2-unfinished is there" in run.skipped[0].reason


def test_a_final_model_leaves_the_run_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = checkpoint(to="run")
    for step in (1, 2):
        checkpoint(to=f"run/checkpoint-{step}", global_step=step)
    checkpoint(to="run/final")
    run = open_run(root)
    assert {s.path for s in run.skipped} == {".", "final"}
    assert not run.has_gaps
