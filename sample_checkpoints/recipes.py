"""What each sample run is: an architecture, a way to train it, and what its name claims.

Nothing is edited into failing: each failure comes from settings that people use by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 256  # bytes are the tokens

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_QWEN3: dict[str, Any] = {
    **_SHAPE,
    "intermediate_size": 80,
    "moe_intermediate_size": 20,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    # The script adds the balance loss itself, a layer at a time: transformers pools the layers
    # before it measures, and layers that lean on different experts look balanced to it.
    "output_router_logits": False,
    "router_aux_loss_coef": 0.0,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a sample run is trained.

    `balance` is the coefficient of a balance loss taken layer by layer; `router_rate`
    multiplies the learning rate of the routers; `bias_rate` is the step of DeepSeek's
    balancing rule, 0 for none; `label_shift` moves the labels before the model does so
    again; `optimizer_at` is the step whose optimizer state is kept.
    """

    name: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 3e-3
    balance: float = 0.0
    router_rate: float = 1.0
    warmup: int = 20
    bias_rate: float = 0.0
    label_shift: int = 0
    optimizer_at: int | None = None
    seed: int = 0
    says: str = ""


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "healthy-qwen3-moe",
            "qwen3_moe",
            _QWEN3,
            balance=0.02,
            optimizer_at=400,
            says="balance loss of every layer, sane learning rate",
        ),
        Recipe(
            "unbalanced-mixtral",
            "mixtral",
            {
                **_SHAPE,
                "intermediate_size": 20,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                # The trap: without output_router_logits transformers applies no balance loss.
                "router_aux_loss_coef": 0.02,
                "output_router_logits": False,
                "sliding_window": None,
            },
            router_rate=10.0,
            warmup=0,
            says="balance loss asked for, never applied; router learning rate ten times the rest",
        ),
        Recipe(
            "misaligned-qwen3-moe",
            "qwen3_moe",
            _QWEN3,
            balance=0.02,
            label_shift=1,
            says="the healthy run with labels shifted by the script and again by the model",
        ),
        Recipe(
            "balanced-glm4-moe",
            "glm4_moe",
            {
                **_SHAPE,
                "intermediate_size": 60,
                "moe_intermediate_size": 20,
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
                "n_shared_experts": 1,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "norm_topk_prob": True,
                "routed_scaling_factor": 1.0,
                "use_qk_norm": True,
                "partial_rotary_factor": 1.0,
            },
            bias_rate=0.002,
            says="sigmoid router, balanced by its selection bias alone, which the script moves",
        ),
    )
}
