"""The planned runs: four models, three texts, two seeds, and eight mistakes.

A good run is trained as its model's authors published: their balance loss and coefficient, or their
selection bias. A run with a mistake is the good run of the same model, text and first seed with one
thing changed, so that it has a twin to compare its final loss with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS, SAVE_EVERY, LOG_EVERY = 1000, 100, 10
BATCH, LENGTH = 8, 160  # sequences and bytes of a step
LEARNING_RATE, WARMUP = 2e-3, 50
MISTAKE_AT = 500  # the step of what happens once: a spike, a wrong resume
TEXTS: Mapping[str, tuple[str, ...]] = {
    "mixed": ("code", "languages", "mathematics", "prose"),
    "english": ("mathematics", "prose"),
    "languages": ("languages",),
}
SEEDS = (0, 1)

_SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model of 0.8 to 1.9 million parameters and how its authors balance it.

    `config` holds the published coefficient of the balance loss, which transformers applies while
    `output_router_logits` is true. `bias_rate` is the step of DeepSeek's selection bias.
    """

    model_type: str
    config: Mapping[str, Any]
    bias_rate: float = 0.0


MODELS: Mapping[str, Model] = {
    # Mixtral 8x7B: coefficient 0.02 (its config.json)
    "mixtral-8x2": Model(
        "mixtral",
        {
            **_SHAPE,
            "intermediate_size": 128,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.02,
            "output_router_logits": True,
            "sliding_window": None,
        },
    ),
    # DeepSeek-V3: selection bias moved by 0.001 a step (arXiv 2412.19437)
    "glm4-16x2": Model(
        "glm4_moe",
        {
            **_SHAPE,
            "intermediate_size": 192,
            "moe_intermediate_size": 64,
            "n_routed_experts": 16,
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
        bias_rate=0.001,
    ),
    # Qwen3-MoE: coefficient 0.001 (its config.json)
    "qwen3-32x4": Model(
        "qwen3_moe",
        {
            **_SHAPE,
            "intermediate_size": 192,
            "moe_intermediate_size": 48,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "router_aux_loss_coef": 0.001,
            "output_router_logits": True,
        },
    ),
    # OLMoE: coefficient 0.01 (its config.json)
    "olmoe-64x8": Model(
        "olmoe",
        {
            **_SHAPE,
            "intermediate_size": 32,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "router_aux_loss_coef": 0.01,
            "output_router_logits": True,
        },
    ),
}

# Each mistake, and the models that can make it.
MISTAKES: Mapping[str, tuple[str, ...]] = {
    # the coefficient is set, the flag is not
    "flag-off": ("mixtral-8x2", "olmoe-64x8", "qwen3-32x4"),
    # the routers are in no parameter group of the optimizer
    "frozen-router": ("qwen3-32x4", "glm4-16x2", "mixtral-8x2"),
    # one expert a token, its weight divided by itself: no gradient reaches the router
    "k1-renormalised": ("mixtral-8x2", "qwen3-32x4", "mixtral-8x2"),
    "rate-x10": ("olmoe-64x8", "mixtral-8x2", "glm4-16x2"),
    # five steps at fifty times the rate
    "spike": ("glm4-16x2", "qwen3-32x4", "mixtral-8x2"),
    # the script shifts the labels, and the model does so again
    "labels-shifted": ("qwen3-32x4", "mixtral-8x2", "olmoe-64x8"),
    # a save writes one rank's experts twice, and the training is resumed from it
    "experts-copied": ("mixtral-8x2", "olmoe-64x8", "qwen3-32x4"),
    # saves hold zeros for the selection bias, and the training is resumed from one
    "bias-not-saved": ("glm4-16x2", "glm4-16x2", "glm4-16x2"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training. `held_back` runs are looked at once the rules are fixed."""

    name: str
    model: str
    text: str
    seed: int
    mistake: str | None
    held_back: bool
    settings: Model = field(repr=False)

    @property
    def twin(self) -> str:
        """The good run of the same model, text and seed."""
        return f"{self.model}-{self.text}-{self.seed}"


def plan_runs() -> tuple[Run, ...]:
    """All runs, good ones first. Half of each kind is held back: no result decides which."""
    runs = [
        Run(f"{model}-{text}-{seed}", model, text, seed, None, seed == 1, MODELS[model])
        for seed in SEEDS
        for text in TEXTS
        for model in MODELS
    ]
    for row, (mistake, models) in enumerate(MISTAKES.items()):
        for column, (text, model) in enumerate(zip(TEXTS, models, strict=True)):
            # one of three or two of three, in turn: half of all
            held = column == row % 3 or (row % 2 == 1 and column == (row + 1) % 3)
            runs.append(
                Run(f"{model}-{text}-0-{mistake}", model, text, 0, mistake, held, MODELS[model])
            )
    return tuple(runs)
