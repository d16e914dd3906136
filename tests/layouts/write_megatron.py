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
import dataclasses
import json
import os
import pickle
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


# The first of MODELS, loaded and saved again by two ranks: each of them holds half of every matrix,
# or half of the experts.
TWO_RANKS = {"megatron-qwen3-tensor-parallel": (2, 1), "megatron-qwen3-expert-parallel": (1, 2)}


def build(options: dict[str, Any], **parallel: int) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    torch.manual_seed(0)
    settings = TransformerConfig(**SIZES, **options, **parallel)
    spec = get_gpt_layer_local_spec(
        num_experts=4, moe_grouped_gemm=False, normalization="RMSNorm",
        qk_layernorm=options.get("qk_layernorm", False),
    )  # fmt: skip
    return GPTModel(
        settings, spec, vocab_size=PADDED, max_sequence_length=64, rotary_base=10000,
        position_embedding_type="rope", share_embeddings_and_output_weights=False,
    )  # fmt: skip


def leave_the_place_out(folder: Path) -> None:
    """The writer's metadata holds the folder that it wrote to; here its name alone."""
    file = folder / ".metadata"
    found = pickle.loads(file.read_bytes())
    own = dataclasses.replace(found.storage_meta, checkpoint_id=folder.name)
    file.write_bytes(pickle.dumps(dataclasses.replace(found, storage_meta=own)))


def write(name: str) -> None:
    from megatron.core import dist_checkpointing

    config, options, how = MODELS[name]
    model = build(options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases too
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = FILES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dist_checkpointing.save(model.sharded_state_dict(prefix="", metadata=how), str(folder))
    leave_the_place_out(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    length = IDS.shape[1]
    later = torch.ones(1, 1, length, length).tril() < 0.5
    with torch.no_grad():
        logits = model.eval()(IDS, torch.arange(length)[None], later)[0, :, :VOCABULARY]
    save_file({"logits": logits.float().contiguous()}, FILES / f"{name}.reference.safetensors")


def start(rank: int, world: int, port: int, tensor: int = 1, expert: int = 1) -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(
        tensor, 1, expert_model_parallel_size=expert, expert_tensor_parallel_size=tensor
    )
    without_a_gpu()


def save_again(rank: int, name: str, port: int) -> None:
    from megatron.core import dist_checkpointing

    tensor, expert = TWO_RANKS[name]
    start(rank, 2, port, tensor, expert)
    first = next(iter(MODELS))
    model = build(
        MODELS[first][1], tensor_model_parallel_size=tensor, expert_model_parallel_size=expert
    )
    state = dist_checkpointing.load(model.sharded_state_dict(prefix=""), str(FILES / first))
    model.load_state_dict(state, strict=False)
    dist_checkpointing.save(model.sharded_state_dict(prefix=""), str(FILES / name))


def without_a_gpu() -> None:
    """Answer what Megatron-core asks of a GPU that it does not need here."""
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer.moe import moe_utils

    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    moe_utils.te_general_gemm = None


def main() -> None:
    start(0, 1, 29547)
    for name in MODELS:
        write(name)
        print(f"wrote {FILES / name}")
    for port, name in enumerate(TWO_RANKS, 29548):
        shutil.rmtree(FILES / name, ignore_errors=True)
        (FILES / name).mkdir()
        torch.multiprocessing.spawn(save_again, (name, port), nprocs=2)
        leave_the_place_out(FILES / name)
        shutil.copy(FILES / next(iter(MODELS)) / "config.json", FILES / name)
        print(f"wrote {FILES / name}")


if __name__ == "__main__":
    main()
