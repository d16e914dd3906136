"""Tiny checkpoints, really saved by transformers, and copies of them that a test may break."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pristine checkpoints: mixtral, sharded (DeepSeek-V3), qwen3 and pickled ones."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("masters")
    mixtral = transformers.MixtralConfig(**TINY, head_dim=8, num_local_experts=4)
    model = transformers.MixtralForCausalLM(mixtral)
    model.save_pretrained(root / "mixtral")
    shutil.copytree(root / "mixtral", root / "pickled")
    (root / "pickled" / "model.safetensors").unlink()
    from safetensors.torch import load_file

    torch.save(
        load_file(root / "mixtral" / "model.safetensors"), root / "pickled" / "pytorch_model.bin"
    )
    deepseek = transformers.DeepseekV3Config(
        **TINY, moe_intermediate_size=8, n_routed_experts=8, n_group=2, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=4,
    )  # fmt: skip
    transformers.DeepseekV3ForCausalLM(deepseek).to(torch.bfloat16).save_pretrained(
        root / "deepseek", max_shard_size="8KB"
    )
    dense = transformers.LlamaConfig(**{k: v for k, v in TINY.items() if "experts" not in k})
    transformers.LlamaForCausalLM(dense).save_pretrained(root / "dense")
    return root


@pytest.fixture
def checkpoint(masters: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a master to a place of the test's choice: checkpoint("mixtral", "run/checkpoint-5")."""

    def copy(master: str = "mixtral", to: str = "checkpoint", **state: Any) -> Path:
        folder = tmp_path / to
        shutil.copytree(masters / master, folder)
        if state:
            (folder / "trainer_state.json").write_text(json.dumps(state))
        return folder

    return copy
