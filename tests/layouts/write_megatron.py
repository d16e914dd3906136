"""Writes tests/layouts/files/megatron-* anew: tiny models, saved by Megatron-core itself.

    pip install --no-deps megatron-core==0.16.1
    python -m tests.layouts.write_megatron

Beside each lie config.json, as a user has it of the model in transformers, and the logits that
Megatron-core's own model gives (`reference.safetensors`). The files are kept in the repository, so
that tests need no megatron-core. It asks for a GPU in a few places where none is needed; these are
answered here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FILES = Path(__file__).parent / "files"
IDS = torch.arange(24)[None] * 5 % 43
VOCABULARY, PADDED = 43, 48
SIZES: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "num_query_groups": 2,
    "kv_channels": 4, "ffn_hidden_size": 12, "moe_ffn_hidden_size": 12, "num_moe_experts": 4,
    "moe_router_topk": 2, "normalization": "RMSNorm", "layernorm_epsilon": 1e-6,
    "gated_linear_unit": True, "activation_func": torch.nn.functional.silu,
    "add_bias_linear": False, "init_method_std": 0.2, "use_cpu_initialization": True,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "bias_activation_fusion": False,
    "masked_softmax_fusion": False, "persist_layer_norm": False, "bias_dropout_fusion": False,
    "apply_rope_fusion": False, "moe_router_load_balancing_type": "none",
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "rms_norm_eps": 1e-6, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
}  # fmt: skip
QWEN3 = {
    **CONFIG, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4, "moe_intermediate_size": 12, "norm_topk_prob": True,
}  # fmt: skip
MIXTRAL = {
    **CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
}  # fmt: skip
QWEN2 = {
    **CONFIG, "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"],
    "num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 8,
    "norm_topk_prob": True,
}  # fmt: skip
# name -> config of transformers, options of Megatron's, how it is to save
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, bool] | None]] = {
    "megatron-qwen3": (QWEN3, {"qk_layernorm": True}, None),
    "megatron-qwen3-by-layer": (QWEN3, {"qk_layernorm": True}, {"non_homogeneous_layers": True}),
    "megatron-qwen3-by-expert": (QWEN3, {"qk_layernorm": True}, {"singleton_local_shards": True}),
    "megatron-mixtral": (MIXTRAL, {}, None),
    "megatron-qwen2": (
        QWEN2,
        {"add_qkv_bias": True, "moe_shared_expert_intermediate_size": 8,
         "moe_shared_expert_gate": True},
        None,
    ),
}  # fmt: skip


def write(name: str) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    config, options, how = MODELS[name]
    torch.manual_seed(0)
    settings = TransformerConfig(**SIZES, **options)
    spec = get_gpt_layer_local_spec(
        num_experts=4, moe_grouped_gemm=False, normalization="RMSNorm",
        qk_layernorm=options.get("qk_layernorm", False),
    )  # fmt: skip
    model = GPTModel(
        settings, spec, vocab_size=PADDED, max_sequence_length=64, rotary_base=10000,
        position_embedding_type="rope", share_embeddings_and_output_weights=False,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases too
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = FILES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dist_checkpointing.save(model.sharded_state_dict(prefix="", metadata=how), str(folder))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    length = IDS.shape[1]
    later = torch.ones(1, 1, length, length).tril() < 0.5
    with torch.no_grad():
        logits = model.eval()(IDS, torch.arange(length)[None], later)[0, :, :VOCABULARY]
    save_file({"logits": logits.float().contiguous()}, FILES / f"{name}.reference.safetensors")


def without_a_gpu() -> None:
    """Answer what Megatron-core asks of a GPU that it does not need here."""
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer.moe import moe_utils

    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    moe_utils.te_general_gemm = None


def main() -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29547")
    dist.init_process_group("gloo", rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1, 1)
    without_a_gpu()
    for name in MODELS:
        write(name)
        print(f"wrote {FILES / name}")


if __name__ == "__main__":
    main()
