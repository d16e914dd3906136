"""Names and folders of real frameworks: each is read by its own words, or listed; none is guessed.

A row: who names so, the checkpoints' places in the folder that is given (files of a user's own
model where they end in .pt), and what is read, or the word of the error that lists them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.own import open_own_run
from moegeo_cli.errors import MoegeoError

WEIGHTS = save({"w": np.zeros(1, np.float32)})
NO_ORDER = "checkpoints without a step, so they have no order"
Row = tuple[str, tuple[str, ...], list[int | None] | str]
ROWS: tuple[Row, ...] = (
    # the Trainer and what stands on it
    ("Trainer, final model", (".", "checkpoint-9", "checkpoint-10"), [9, 10]),
    ("Trainer, a copy", ("checkpoint-10", "checkpoint-10.bak", "checkpoint-20"), [10, 20]),
    ("Trainer, hyperparameter search", ("run-0/checkpoint-10", "run-1/checkpoint-10"), "2 runs"),
    ("LLaMA-Factory", ("saves/moe/full/checkpoint-10", "saves/moe/full/checkpoint-20"), [10, 20]),
    ("axolotl", ("out", "out/checkpoint-10", "out/checkpoint-20"), [10, 20]),
    ("axolotl, merged", ("checkpoint-10", "checkpoint-20", "merged"), [10, 20]),
    ("ms-swift", ("v0-20241105-101112/checkpoint-5", "v0-20241105-101112/checkpoint-6"), [5, 6]),
    ("ms-swift, merged",
     ("v0-20241105-101112/checkpoint-5", "v0-20241105-101112/checkpoint-5-merged"), [5]),
    ("ms-swift, last", ("checkpoint-5", "checkpoint-6", "checkpoint-last"), [5, 6]),
    ("a run and a model", ("a/checkpoint-5", "base"), "1 run and 1 model"),
    ("runs by learning rate", ("lr1e-4/checkpoint-5", "lr3e-4/checkpoint-5"), "2 runs"),
    ("Hydra", ("outputs/2024-11-05/10-11-12/checkpoint-5",
               "outputs/2024-11-05/11-11-12/checkpoint-5"), "2 runs"),
    # reinforcement learning
    ("verl", ("global_step_5/actor/huggingface", "global_step_5/critic/huggingface",
              "global_step_6/actor/huggingface"), [5, 6]),
    ("verl, merged", ("global_step_5/merged_hf_model", "global_step_6/merged_hf_model"), [5, 6]),
    ("verl, critic alone", ("global_step_5/critic/huggingface",), "a model lies deeper"),
    ("OpenRLHF", ("global_step100_hf", "global_step200_hf"), [100, 200]),
    ("SkyRL", ("exports/global_step_5/policy", "exports/global_step_6/policy"), [5, 6]),
    ("AReaL", ("epoch0epochstep9globalstep9", "epoch1epochstep3globalstep19"), [9, 19]),
    ("trlx", ("best_checkpoint/hf_model", "checkpoint_1/hf_model", "checkpoint_2/hf_model"),
     [1, 2]),
    ("prime-rl", ("weights/step_10", "weights/step_20"), [10, 20]),
    ("NeMo-RL", ("step_10/policy/weights", "step_20/policy/weights"), [10, 20]),
    # pretraining
    ("accelerate save_state", ("checkpoints/checkpoint_0", "checkpoints/checkpoint_1"), [0, 1]),
    ("accelerate's examples", ("epoch_0", "epoch_1"), [0, 1]),
    ("torchtune", ("epoch_0", "epoch_1"), [0, 1]),
    ("torchtune, deeper", ("moe/epoch_0", "moe/epoch_1"), [0, 1]),
    ("exported by epoch", ("epoch_0/hf", "epoch_1/hf"), [0, 1]),
    ("OLMo-core", ("step0", "step1000", "step2000"), [0, 1000, 2000]),
    ("OLMo", ("latest-unsharded", "step1000-unsharded-hf", "step2000-unsharded-hf"), [1000, 2000]),
    ("OLMo, one stage", ("stage1-step1000-tokens5B", "stage1-step2000-tokens9B"), [1000, 2000]),
    ("OLMo, ingredients", ("stage2-ingredient1-step100-tokens1B",
                           "stage2-ingredient2-step100-tokens1B"), "2 stages"),
    ("Pythia", ("main", "step0", "step1", "step512"), [0, 1, 512]),
    ("Amber, K2", ("ckpt_001", "ckpt_360", "main"), [1, 360]),
    ("litgpt", ("final", "step-00001000", "step-00002000"), [1000, 2000]),
    ("litgpt, its own files", ("step-00001000/lit_model.pt", "step-00002000/lit_model.pt"),
     [1000, 2000]),
    ("lingua", ("checkpoints/0000001000/consolidated", "checkpoints/0000002000/consolidated"),
     [1000, 2000]),
    ("nanotron, picotron", ("10", "20"), [10, 20]),
    ("levanter", ("hf/run1/step-1000", "hf/run1/step-2000"), [1000, 2000]),
    ("Megatron-Bridge", ("iter_0000100", "iter_0000200"), [100, 200]),
    ("Megatron, exported below", ("iter_0000100/hf", "iter_0000200/hf"), [100, 200]),
    ("NeMo 1", ("gpt--val_loss=2.10-step=100-consumed_samples=800.0",
                "gpt--val_loss=2.00-step=200-consumed_samples=1600.0"), [100, 200]),
    ("NeMo 2", ("default--val_loss=1.5-epoch=0-step=99", "default--val_loss=1.4-epoch=0-step=199",
                "default--val_loss=1.4-epoch=0-step=199-last"), [99, 199]),
    ("NeMo AutoModel", ("checkpoints/epoch_0_step_10/model/consolidated",
                        "checkpoints/epoch_0_step_20/model/consolidated"), [10, 20]),
    ("XTuner", ("iter_500_hf", "iter_1000_hf"), [500, 1000]),
    ("XTuner 1", ("20250901120000/hf-10", "20250901120000/hf-20"), "2 models lie deeper"),
    ("VeOmni", ("checkpoints/global_step_5/hf_ckpt", "checkpoints/global_step_6/hf_ckpt"), [5, 6]),
    # files of a model of one's own
    ("Lightning", ("epoch=0-step=10.pt", "epoch=1-step=20.pt", "last.pt"), [10, 20]),
    ("Lightning, by loss", ("epoch=02-val_loss=2.34.pt", "epoch=03-val_loss=2.11.pt"), [2, 3]),
    ("Lightning, versions", ("version_0/checkpoints/epoch=0-step=10.pt",
                             "version_1/checkpoints/epoch=0-step=10.pt"), "2 runs"),
    ("Composer", ("ep0-ba100-rank0.pt", "ep0-ba200-rank0.pt", "latest-rank0.pt"), [100, 200]),
    ("fairseq", ("checkpoint_1_500.pt", "checkpoint_2_1000.pt", "checkpoint_best.pt",
                 "checkpoint_last.pt"), [500, 1000]),
    ("fairseq, epochs", ("checkpoint1.pt", "checkpoint2.pt", "checkpoint_last.pt"), [1, 2]),
    ("nanochat", ("d32/model_000500.pt", "d32/model_001000.pt"), [500, 1000]),
    ("modded-nanogpt", ("logs/abc/state_step001000.pt", "logs/abc/state_step002000.pt"),
     [1000, 2000]),
    ("nanoGPT", ("ckpt.pt",), [None]),
    ("widths", ("pretrain_768_moe.pt", "pretrain_512_moe.pt"), "no step in its name"),
    # no order, or more than one meaning
    ("dates", ("20241105", "20241106"), NO_ORDER),
    ("dates with dashes", ("2024-11-05", "2024-11-06"), NO_ORDER),
    ("dates with times", ("2024-11-05_10-11-12", "2024-11-06_09-00-00"), NO_ORDER),
    ("sizes", ("moe-8x7b", "moe-8x22b"), NO_ORDER),
    ("versions", ("v1", "v2"), NO_ORDER),
    ("seeds", ("seed-1", "seed-2"), NO_ORDER),
    ("experts", ("experts8", "experts16"), NO_ORDER),
    ("context lengths", ("ctx4096", "ctx8192"), NO_ORDER),
    ("thousands", ("step1k", "step2k"), NO_ORDER),
    ("thousands apart", ("step_1_000", "step_2_000"), NO_ORDER),
    ("a number before its word", ("1000-steps", "2000-steps"), NO_ORDER),
    ("fractions", ("step-1.5", "step-2.5"), NO_ORDER),
    ("tokens alone", ("100B-tokens", "200B-tokens"), NO_ORDER),
    ("samples", ("consumed_samples_1000", "consumed_samples_2000"), NO_ORDER),
    ("stages in words", ("base", "sft", "dpo"), NO_ORDER),
)  # fmt: skip


@pytest.mark.parametrize(("places", "expected"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_names_are_read_or_listed(places: tuple[str, ...], expected: Any, tmp_path: Path) -> None:
    top = tmp_path / "RUN"
    own = any(place.endswith(".pt") for place in places)
    for place in places:
        path = top / place
        if own:
            path = path.with_suffix(".safetensors")  # as good as .pt, and quicker to write
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
            path /= "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WEIGHTS)
    open_it = open_own_run if own else open_run
    if isinstance(expected, str):
        with pytest.raises(MoegeoError) as caught:
            open_it(top)
        error = caught.value
        assert expected in f"{error.message} {error.found}"
        assert error.exit_code == 2
        shown = {name for place in places if (name := place.split(".")[0].split("/")[0])}
        assert all(name in str(error.found) for name in shown)
        return
    run = open_it(top)
    assert [checkpoint.step for checkpoint in run.checkpoints] == expected
    assert not run.has_gaps
