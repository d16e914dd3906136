import json

import pytest

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.training import router_settings
from moegeo_cli.errors import IncompleteCheckpointError
from moegeo_cli.records import to_dict

HISTORY = [
    {"step": 10, "loss": 3.5, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": 0.1},
    {"step": 5, "loss": 4.0},
    {"step": 10, "eval_loss": 3.6},
    {"step": 15, "loss": float("nan"), "grad_norm": float("inf"), "note": "text"},
    {"loss": 1.0},
    "not an entry",
]


def read(folder):
    return open_run(folder).newest.training


def test_the_trainers_own_account(checkpoint):
    log = read(
        checkpoint(
            to="checkpoint-15", global_step=15, max_steps=60, num_input_tokens_seen=3840,
            log_history=HISTORY, train_batch_size=4,
        )
    )  # fmt: skip
    assert (log.step, log.tokens, log.fraction) == (15, 3840, 0.25)
    assert [entry["step"] for entry in log.log] == [5, 10, 10, 15]
    assert log.log[-1] == {
        "step": 15, "loss": None, "grad_norm": None, "nonfinite": ["grad_norm", "loss"],
    }  # fmt: skip
    assert log.framework == "transformers"
    assert log.settings["router_aux_loss_coef"] == 0.001
    assert log.settings["output_router_logits"] is False
    assert log.settings["num_local_experts"] == 4
    assert log.settings["trainer.train_batch_size"] == 4
    json.dumps(to_dict(log), allow_nan=False)


def test_without_a_trainer(checkpoint):
    log = read(checkpoint(to="checkpoint-15"))
    assert (log.step, log.tokens, log.fraction, log.log) == (15, None, None, ())
    assert log.framework is None


def test_uncounted_tokens_are_unknown_not_zero(checkpoint):
    log = read(checkpoint(global_step=3, max_steps=0, num_input_tokens_seen=0))
    assert log.tokens is None
    assert log.fraction is None


@pytest.mark.parametrize(
    "state",
    [
        {"global_step": "12", "max_steps": -1, "log_history": {"a": 1}},
        {"global_step": 10**400, "log_history": [{"step": 1, "loss": 10**400}]},
        {"global_step": None, "num_input_tokens_seen": 1e400, "log_history": [[]]},
    ],
)
def test_a_state_of_odd_values(checkpoint, state):
    log = read(checkpoint(to="checkpoint-15", **state))
    assert log.step == 15
    json.dumps(to_dict(log), allow_nan=False)


def test_a_broken_state(checkpoint):
    folder = checkpoint()
    (folder / "trainer_state.json").write_text("[]")
    with pytest.raises(IncompleteCheckpointError, match=r"trainer_state\.json is not an object"):
        _ = Checkpoint(folder).training


def test_training_args_are_never_loaded(checkpoint, tmp_path):
    folder = checkpoint(global_step=1)
    (folder / "training_args.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    read(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text", "framework"),
    [
        ("trainer_log.jsonl", "{}", "llama-factory"),
        ("README.md", "---\ntags:\n- trl\n- sft\n---", "trl"),
        ("README.md", "---\ntags:\n- llama-factory\n---", "llama-factory"),
        ("README.md", "We compared trl with others.", "transformers"),
    ],
)
def test_frameworks_over_the_trainer(checkpoint, name, text, framework):
    folder = checkpoint(to="run/checkpoint-1", global_step=1)
    (folder.parent / name).write_text(text)
    assert read(folder).framework == framework


def test_trl_by_its_log(checkpoint):
    history = [{"step": 1, "loss": 2.0, "mean_token_accuracy": 0.5, "num_tokens": 640.0}]
    log = read(checkpoint(global_step=1, log_history=history))
    assert log.framework == "trl"
    assert log.tokens == 640


@pytest.mark.parametrize(
    ("name", "text", "framework"),
    [
        ("latest_checkpointed_iteration.txt", "1", "megatron"),
        ("job.toml", "[job]\ndump_folder = 'x'\n[training]\n", "torchtitan"),
        ("model_config.yaml", "", "nemo"),
    ],
)
def test_frameworks_without_the_trainer(checkpoint, name, text, framework):
    folder = checkpoint(to="run/step-1")
    (folder.parent / name).write_text(text)
    assert read(folder).framework == framework


def test_settings_of_nested_configs():
    config = {
        "model_type": "x",
        "text_config": {"num_experts": 4, "router_aux_loss_coef": float("nan"), "hidden_size": 8},
        "ffn_config": {"moe_loss_weight": 0.5},
    }
    assert router_settings(config) == {"num_experts": 4, "router_aux_loss_coef": None}
    dbrx = {"ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "moe_loss_weight": 0.5}}
    assert router_settings(dbrx) == {
        "ffn_config.moe_loss_weight": 0.5,
        "ffn_config.moe_num_experts": 4,
        "ffn_config.moe_top_k": 2,
    }
