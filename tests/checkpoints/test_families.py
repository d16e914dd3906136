"""The table's layers, router names and biases against models that transformers really saved."""

import pytest

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.checkpoints.routers import check_routers

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
E8 = {"num_experts": 8, "num_experts_per_tok": 2}
LOCAL8 = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED8 = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "head_dim": 8,
}  # fmt: skip
MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
CASES = {
    "qwen3_moe": {**E8, "head_dim": 8, "decoder_sparse_step": 2},
    "olmoe": E8,
    "gpt_oss": {**LOCAL8, "head_dim": 8},
    "granitemoe": LOCAL8,
    "glm4_moe": {**ROUTED8, "first_k_dense_replace": 1},
    "dots1": {**ROUTED8, "first_k_dense_replace": 2, "n_shared_experts": 1},
    "llama4_text": {**LOCAL8, "head_dim": 8, "interleave_moe_layer_step": 2},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2},
    "lfm2_moe": {**E8, "num_dense_layers": 1, "layer_types": ["full_attention", "conv"] * 2},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 8},
    "minimax": {**LOCAL8, "head_dim": 8},
    "minimax_m2": {**LOCAL8, "head_dim": 8},
    "qwen2_moe": {**E8, "mlp_only_layers": [1], "shared_expert_intermediate_size": 16},
    "qwen3_next": {**E8, "head_dim": 8},
    "flex_olmo": E8,
    "granitemoeshared": LOCAL8,
    "granitemoehybrid": {**LOCAL8, "mamba_n_heads": 4, "mamba_d_head": 16},
    "deepseek_v2": {**ROUTED8, **MLA, "first_k_dense_replace": 1},
    "deepseek_v32": {**ROUTED8, **MLA, "num_key_value_heads": 4},
    "glm4_moe_lite": {**ROUTED8, **MLA, "num_key_value_heads": 4},
    "exaone_moe": {**E8, "head_dim": 8},
    "jamba": {**E8, "mamba_d_state": 8},
    "longcat_flash": {
        **MLA, "n_routed_experts": 8, "moe_topk": 2, "zero_expert_num": 2, "num_layers": 2,
        "expert_ffn_hidden_size": 16, "ffn_hidden_size": 32, "num_hidden_layers": None,
    },
    "afmoe": {**E8, "head_dim": 8, "num_dense_layers": 1},
    "hy_v3": {**E8, "head_dim": 8},
    "laguna": {**E8, "head_dim": 8},
    "kolibri1": {**LOCAL8, "head_dim": 8},
    "mistral4": {**ROUTED8, **MLA, "first_k_dense_replace": 1},
    "aria_text": {"moe_num_experts": 8, "moe_topk": 2},
    "cohere2_moe": {**E8, "head_dim": 8},
    "jetmoe": {**LOCAL8, "kv_channels": 8},
}  # fmt: skip


@pytest.mark.parametrize("model_type", CASES)
def test_routers_in_the_files_are_those_of_the_table(model_type, tmp_path):
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    values = {k: v for k, v in {**COMMON, **CASES[model_type]}.items() if v is not None}
    known = transformers.AutoConfig.for_model(model_type)
    usable = {
        key: value
        for key, value in values.items()
        if hasattr(known, key) or key in type(known).attribute_map
    }
    config = transformers.AutoConfig.for_model(model_type, **usable)
    torch.manual_seed(0)
    auto = transformers.AutoModel if model_type == "mistral4" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    found = describe_architecture(read_config(tmp_path))
    routers = check_routers(open_weights(tmp_path), found)
    assert found.moe_layers is not None
    assert {router.layer for router in routers} == set(found.moe_layers)
    assert all(router.module.endswith(found.router_path) for router in routers) or (
        model_type == "jetmoe"  # attention has routers too
    )
    assert all((router.selection_bias is not None) == found.selection.bias for router in routers)
