"""A tiny random checkpoint of every causal mixture-of-experts type in transformers.

One recipe serves nearly all: whatever size a configuration class knows by one of these names
is made small. `OWN` holds what a type needs beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    # sizes
    "vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size": 32, "d_model": 32,
    "intermediate_size": 32, "ffn_hidden_size": 32, "hidden_size_per_layer_input": 8,
    "max_position_embeddings": 128, "max_seq_len": 128, "num_hidden_layers": 4, "n_layers": 4,
    "num_layers": 2, "tie_word_embeddings": False, "projector_hidden_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # attention
    "num_attention_heads": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "kv_channels": 8, "sliding_window": 16, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
    "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64,
    # recurrence
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_head_dim": 8, "linear_num_heads": 4,
    # experts
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2,
    "moe_top_k": 2, "top_k_experts": 2, "num_selected_experts": 2, "n_group": 2,
    "topk_group": 1, "num_expert_group": 2, "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16, "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "n_shared_experts": 1, "num_shared_experts": 1, "first_k_dense_replace": 1,
    "num_dense_layers": 1, "zero_expert_num": 2, "moe_latent_size": 16,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8,
                       "moe_top_k": 2},
    },
    "doge": {"is_moe": True},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [16, 32]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", *["sparse"] * 3]},
    "dots3_note_text": {"layer_types": ["indexed_attention"] * 4},
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "sparse"], "per_layer_config": {},
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [16, 8],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    },
    "gemma4_text": {"enable_moe_block": True, "per_layer_config": {}},
    "glm4v_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2],
                            "partial_rotary_factor": 1.0},
    },
    "glm5_next_text": {
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "qk_rope_head_dim": 0, "head_dim": 0, "qk_head_dim": 8, "index_kpool": 2,
    },
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 2},
    "llama4_vision_model": {
        "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32,
    },
    "mistral4": {"head_dim": 16},
    "muse_spark_audio": {
        "num_hidden_layers": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1],
    },
    "muse_spark_text": {"moe_hidden_size": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 2, "hc_lowrank": 8, "ple_embed_dim": 32,
    },
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 16},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "nllb-moe": {
        "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_sparse_step": 1, "decoder_sparse_step": 1,
    },
    "radio": {"video_temporal_patch_size": 2},
    "step3p5": {"mlp_layer_types": ["dense", *["sparse"] * 3]},
    "switch_transformers": {
        "d_kv": 8, "d_ff": 16, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2, "expert_capacity": 3,
        "decoder_start_token_id": 0,
    },
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [16, 32]},
    "vitpose_backbone": {"part_features": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Latent attention has a key head for every query head.
LATENT = {"num_key_value_heads": 4}


# The same for what a model sees and hears with.
TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 4, "mlp_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2, "patch_size": 4,
    "image_size": 16, "out_hidden_size": 32, "embed_dim": 32, "head_dim": 8, "output_channels": 16,
    "max_position_embeddings": 16, "downsample_hidden_size": 8, "d_model": 32, "output_dim": 32,
    "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 32, "num_mel_bins": 16,
    "text_hidden_size": 32, "adapter_in_dim": 32, "adapter_out_dim": 32, "adapter_input_size": 32,
    "projection_hidden_dim": 32, "projection_intermediate_size": 32, "vocab_size": 64,
    "position_embedding_size": 16, "max_img_size": 16, "n_layers": 2, "n_mel_bins": 8,
    "mel_vocab_size": 16, "audio_hidden_size": 32, "blank_token_id": 0,
}  # fmt: skip
TEXT = ("text_config", "thinker_config")


def tiny_config(model_type: str) -> Any:
    """The type's own configuration class, everything small, every tower of it.

    "a + b" is a type of several towers with b's language model.
    """
    from transformers import AutoConfig

    model_type, _, text = model_type.partition(" + ")
    values = _values(AutoConfig.for_model(model_type), SMALL)
    if text:
        values["text_config"] = {
            "model_type": text, **_values(AutoConfig.for_model(text), SMALL)
        }  # fmt: skip
    return AutoConfig.for_model(model_type, **values)


def _values(known: Any, small: dict[str, Any]) -> dict[str, Any]:
    """Small values for what a configuration has, and for the parts of it."""
    values = {**small, **(LATENT if _has(known, "kv_lora_rank") else {})}
    aliases = type(known).attribute_map
    values = {k: v for k, v in values.items() if k in aliases or _has(known, k)}
    values |= OWN.get(known.model_type or type(known).__name__, {})
    for name in getattr(type(known), "sub_configs", None) or {}:
        part = getattr(known, name, None)
        if part is not None and name not in values:
            of_part = _values(part, SMALL if name in TEXT else TOWER)
            values[name] = {"model_type": part.model_type, **of_part}
    return values


def _has(config: Any, name: str) -> bool:
    rule = getattr(type(config), name, None)
    if isinstance(rule, property) and rule.fset is None:
        return False
    try:
        return hasattr(config, name)
    except Exception:  # a value that varies by layer may not be asked for: it is there
        return True


def save_tiny(model_type: str, path: Path, seed: int = 0) -> None:
    """Save a model of the type whose routers decide clearly."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = tiny_config(model_type)
    kinds = ("ImageTextToText", "MultimodalLM", "CausalLM", "Seq2SeqLM", "TokenClassification")
    autos = [getattr(transformers, f"AutoModelFor{kind}") for kind in kinds]
    autos.append(transformers.AutoBackbone)
    auto = next(auto for auto in autos if type(config) in auto._model_mapping)
    model = auto.from_config(config).float()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("correction_bias", "expert_bias", "balancing_biases")):
                tensor.normal_(0, 0.1)
            elif tensor.is_floating_point() and tensor.ndim >= 2:
                tensor.normal_(0, 0.2)
            elif name.endswith("tid2eid"):
                top_k = tensor.shape[1]
                tensor.copy_(torch.stack([torch.randperm(8)[:top_k] for _ in tensor]))
    model.save_pretrained(path)
