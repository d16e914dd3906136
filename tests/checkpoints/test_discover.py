import json
import shutil

import pytest

from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.step_names import parse_step
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    NoCheckpointError,
    PathError,
    UnsupportedLayoutError,
)


def steps(run):
    return [checkpoint.step for checkpoint in run.checkpoints]


def reasons(run):
    return {item.path: item.reason for item in run.skipped}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("checkpoint-0", 0),
        ("checkpoint_12", 12),
        ("step_500", 500),
        ("step1000-tokens4B", 1000),
        ("iter_0000100", 100),
        ("global_step20", 20),
        ("global-step-20", 20),
        ("ckpt-7", 7),
        ("0042", 42),
        ("final", None),
        ("checkpoint-best", None),
        ("tmp-checkpoint-5", None),
        ("epoch-3", None),
        ("checkpoint-" + "9" * 40, None),
    ],
)
def test_steps_in_names(name, step):
    assert parse_step(name) == step


def test_a_single_checkpoint(checkpoint):
    folder = checkpoint(to="run/checkpoint-20")
    run = open_run(str(folder))
    assert run.is_single
    assert run.name == "checkpoint-20"
    assert steps(run) == [20]
    assert run.newest.relative == "."
    assert run.newest.layout == "safetensors"
    assert run.newest.trainer_state is None


def test_a_path_by_other_names(checkpoint, monkeypatch):
    folder = checkpoint(to="run/checkpoint-20")
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    run = open_run("..")
    assert (run.name, steps(run)) == ("checkpoint-20", [20])
    monkeypatch.chdir(folder)
    assert open_run(".").name == "checkpoint-20"
    (folder.parent / "latest").symlink_to("checkpoint-20")
    assert steps(open_run(folder.parent / "latest")) == [20]


def test_a_run_is_sorted_by_number(checkpoint, tmp_path):
    for step in (1000, 200, 0, 30):
        checkpoint(to=f"run/checkpoint-{step}", global_step=step)
    run = open_run(tmp_path / "run")
    assert not run.is_single
    assert run.name == "run"
    assert steps(run) == [0, 30, 200, 1000]
    assert run.newest.relative == "checkpoint-1000"
    assert run.newest.trainer_state == {"global_step": 1000}
    assert run.skipped == ()


def test_what_a_run_folder_also_holds(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-1", global_step=1)
    checkpoint(to="run/.cache-5", global_step=5)
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "README.md").write_text("a run")
    (tmp_path / "run" / "checkpoint-9").write_text("a file of that name")
    run = open_run(tmp_path / "run")
    assert steps(run) == [1]
    assert run.skipped == ()


def test_temporary_names_are_skipped(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-1")
    for name in ("tmp-checkpoint-2", "checkpoint-3.tmp", "checkpoint-4-tmp", "x.incomplete"):
        checkpoint(to=f"run/{name}")
    run = open_run(tmp_path / "run")
    assert steps(run) == [1]
    assert len(reasons(run)) == 4
    assert all("temporary" in reason for reason in reasons(run).values())


def test_a_link_to_the_latest_is_not_one_more(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-1", global_step=1)
    checkpoint(to="run/checkpoint-2", global_step=2)
    (tmp_path / "run" / "latest").symlink_to("checkpoint-2")
    checkpoint(to="run/best")
    run = open_run(tmp_path / "run")
    assert [c.relative for c in run.checkpoints] == ["checkpoint-1", "checkpoint-2"]
    assert reasons(run) == {
        "best": "no step in its name or state",
        "latest": "the same step as checkpoint-2",
    }


def test_folders_with_a_step_only_in_their_state(checkpoint, tmp_path):
    checkpoint(to="run/late", global_step=20)
    checkpoint(to="run/early", global_step=10)
    assert [c.relative for c in open_run(tmp_path / "run").checkpoints] == ["early", "late"]


def test_checkpoints_without_any_order(checkpoint, tmp_path):
    checkpoint(to="models/a")
    checkpoint(to="models/b")
    with pytest.raises(NoCheckpointError, match="no order"):
        open_run(tmp_path / "models")


def test_the_final_model_beside_the_checkpoints(checkpoint, tmp_path):
    run_folder = checkpoint(to="run", global_step=30)
    checkpoint(to="run/checkpoint-10", global_step=10)
    run = open_run(run_folder)
    assert steps(run) == [10, 30]
    assert run.newest.relative == "."
    (run_folder / "trainer_state.json").write_text('{"global_step": 10}')
    assert steps(open_run(run_folder)) == [10]
    (run_folder / "trainer_state.json").unlink()
    run = open_run(run_folder)
    assert steps(run) == [10]
    assert "final model" in reasons(run)["."]


def test_the_newest_without_a_state_is_still_being_written(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-10", global_step=10)
    late = checkpoint(to="run/checkpoint-20")
    run = open_run(tmp_path / "run")
    assert steps(run) == [10]
    assert "still being written" in reasons(run)["checkpoint-20"]
    with pytest.raises(IncompleteCheckpointError, match="still being written"):
        open_run(late)


def test_an_initial_model_without_a_state_counts(checkpoint, tmp_path):
    first = checkpoint(to="run/checkpoint-0")
    checkpoint(to="run/checkpoint-10", global_step=10)
    assert steps(open_run(tmp_path / "run")) == [0, 10]
    assert steps(open_run(first)) == [0]


def test_a_cut_state_is_still_being_written(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-10", global_step=10)
    late = checkpoint(to="run/checkpoint-20", global_step=20)
    (late / "trainer_state.json").write_text('{"global_step": 2')
    assert steps(open_run(tmp_path / "run")) == [10]
    with pytest.raises(IncompleteCheckpointError, match="trainer_state"):
        open_run(late)


def damage_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_config(folder):
    (folder / "config.json").write_text('{"model_type": "mix')


DAMAGE = {
    "truncated weights": (damage_weights, "model.safetensors is truncated or damaged"),
    "cut config": (damage_config, "config.json is truncated or damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors is truncated or damaged",
    ),
    "config that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json is not an object",
    ),
    "config nested too deep": (
        lambda f: (f / "config.json").write_text("[" * 99_999),
        "config.json is truncated or damaged",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE.keys())
def test_an_incomplete_checkpoint_is_skipped_in_a_run_and_an_error_alone(
    checkpoint, tmp_path, damage, words
):
    checkpoint(to="run/checkpoint-10")
    broken = checkpoint(to="run/checkpoint-20")
    damage(broken)
    run = open_run(tmp_path / "run")
    assert steps(run) == [10]
    assert list(reasons(run)) == ["checkpoint-20"]
    with pytest.raises(IncompleteCheckpointError, match=words):
        open_run(broken)
    damage(tmp_path / "run" / "checkpoint-10")
    with pytest.raises(IncompleteCheckpointError, match="none of the 2 checkpoints in"):
        open_run(tmp_path / "run")


def test_a_run_whose_every_checkpoint_is_broken(checkpoint, tmp_path):
    for step in (1, 2):
        damage_weights(checkpoint(to=f"run/checkpoint-{step}"))
    with pytest.raises(IncompleteCheckpointError, match="none of the 2"):
        open_run(tmp_path / "run")


def test_paths_that_lead_nowhere(checkpoint, tmp_path):
    with pytest.raises(PathError, match="does not exist"):
        open_run(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(PathError, match="is a broken link"):
        open_run(tmp_path / "loop")
    file = checkpoint() / "model.safetensors"
    with pytest.raises(PathError, match="is a file"):
        open_run(file)
    with pytest.raises(PathError, match="does not exist"):
        open_run("a\0b")


def test_a_loop_of_links_inside_a_run(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-1")
    (tmp_path / "run" / "checkpoint-2").symlink_to("checkpoint-2")
    (tmp_path / "run" / "again").symlink_to(".")
    assert steps(open_run(tmp_path / "run")) == [1]


def test_no_checkpoint(tmp_path):
    with pytest.raises(NoCheckpointError, match="holds no checkpoint"):
        open_run(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(NoCheckpointError) as caught:
        open_run(tmp_path)
    assert "notes.txt" in caught.value.found


FOREIGN = {
    "several GGUF": (["model-q8_0.gguf", "model-q4_0.gguf"], "a folder of its own"),
    "DeepSpeed": (["latest", "zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"],
                  "zero_to_fp32.py . OUT"),
    "Megatron": (["mp_rank_00/model_optim_rng.pt"], "export_ckpt"),
    "Megatron-dist": (["metadata.json", "common.pt", ".metadata", "__0_0.distcp"], "export_ckpt"),
    "FSDP by rank": (["pytorch_model_fsdp_0_rank0.bin"], "SHARDED_STATE_DICT"),
    "rank shards": (["shard-00001-model-00001-of-00002.safetensors"], "enable_consolidation"),
    "OLMo-core": (["model_and_optim/.metadata"], "convert_checkpoint_to_hf.py"),
    "NeMo": (["model.nemo"], "exporter"),
    "orbax": (["_CHECKPOINT_METADATA", "default/manifest.ocdbt"], "to_huggingface"),
    "tensorstore": (["target/decoder/.zarray"], "to_huggingface"),
    "fairseq": (["checkpoint_last.pt", "checkpoint_1_500.pt"], "--model"),
    "fairseq, experts": (["checkpoint_1_500-rank-0-shard0.pt"], "conversion script"),
    "DeepSpeed, experts": (["layer_0_expert_3_mp_rank_00_model_states.pt"], "zero_to_fp32"),
    "original": (["consolidated.00.pth", "params.json"], "conversion script"),
    "bare": (["model.pt"], "save_pretrained"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_layouts_are_named_with_the_way_out(tmp_path, name):
    files, command = FOREIGN[name]
    folder = tmp_path / "run" / "checkpoint-5"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    for path in (folder, tmp_path / "run"):  # alone, and as all that a run holds
        with pytest.raises(UnsupportedLayoutError) as caught:
            open_run(path)
        assert command in caught.value.hint


def test_a_megatron_run_folder(tmp_path):
    (tmp_path / "iter_0000100" / "mp_rank_00").mkdir(parents=True)
    (tmp_path / "iter_0000100" / "mp_rank_00" / "model_optim_rng.pt").write_bytes(b"x")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    with pytest.raises(UnsupportedLayoutError, match="Megatron"):
        open_run(tmp_path)


def test_a_gguf_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedLayoutError, match="is a GGUF file, and moegeo takes folders"):
        open_run(tmp_path / "m.gguf")


def test_weights_beside_deepspeed_states_are_read(checkpoint):
    folder = checkpoint(to="run/checkpoint-5", global_step=5)
    (folder / "zero_to_fp32.py").write_text("")
    (folder / "global_step5").mkdir()
    (folder / "global_step5" / "mp_rank_00_model_states.pt").write_bytes(b"x")
    assert steps(open_run(folder)) == [5]
    assert steps(open_run(folder.parent)) == [5]


def test_sharded_and_pickled_members(checkpoint, tmp_path):
    checkpoint("deepseek", to="run/checkpoint-1")
    checkpoint("pickled", to="run/checkpoint-2")
    run = open_run(tmp_path / "run")
    assert [c.layout for c in run.checkpoints] == ["safetensors-sharded", "pytorch"]
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    next((tmp_path / "run" / "checkpoint-1").glob("*-00001-*")).unlink()
    with pytest.raises(IncompleteCheckpointError, match="shards are missing"):
        open_run(tmp_path / "run")


def test_config_is_read(masters):
    assert read_config(masters / "mixtral")["model_type"] == "mixtral"
    assert json.dumps(read_config(masters / "mixtral"))
