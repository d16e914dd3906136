"""Tiny random models of many architectures, for tests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
DEEPSEEK: dict[str, Any] = {
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 12,
        "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 12,
        "head_dim": 6,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "gpt_oss": {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "head_dim": 6,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "granitemoe": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **DEEPSEEK,
        "q_lora_rank": 12,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
        "num_key_value_heads": 4,
    },
    "glm4_moe": {**DEEPSEEK, "head_dim": 6},
}


def build_tiny(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model; routers and biases are spread out so that nothing is a tie."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**COMMON, **CONFIGS[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("gate.weight", "router.weight")):
                tensor.normal_(0, 0.6)
            elif name.endswith(("e_score_correction_bias", "router.bias")):
                tensor.normal_(0, 0.1)
            elif tensor.ndim >= 2:
                tensor.normal_(0, 0.25)
    return model


def save_tiny(model_type: str, path: Path, seed: int = 0, **changes: Any) -> Path:
    """Save such a model where a test wants it."""
    build_tiny(model_type, seed, **changes).save_pretrained(path)
    return path
