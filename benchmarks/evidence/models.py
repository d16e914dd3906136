"""The models of the study, built from settings: three of transformers' types, one for digits.

Legend: T tokens of a batch, E experts, K chosen per token, D width.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.evidence.settings import ModelSettings, TrainSettings
from benchmarks.evidence.tasks import LENGTH, Task
from sample_checkpoints import digits

ROUTERS_OF_DIGITS = "blocks.*.mixture.router"


def build_model(model: ModelSettings, train: TrainSettings, task: Task, seed: int) -> nn.Module:
    """A freshly initialised model; its configuration says what balance loss was asked for."""
    torch.manual_seed(seed)
    if model.kind == "digits":
        return digits.build(_digits_config(model))
    shape: dict[str, Any] = {
        "vocab_size": task.vocabulary,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": model.width // 4,
        "max_position_embeddings": 4 * LENGTH,
        "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        "num_experts_per_tok": model.top_k,
    }  # fmt: skip
    if model.kind == "glm4_moe":
        shape |= {
            "intermediate_size": model.hidden, "moe_intermediate_size": model.hidden,
            "n_routed_experts": model.experts, "n_shared_experts": 1, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 0, "norm_topk_prob": model.top_k > 1,
            "routed_scaling_factor": 1.0, "use_qk_norm": True, "partial_rotary_factor": 1.0,
        }  # fmt: skip
    else:
        shape |= {
            "router_aux_loss_coef": train.balance,
            "output_router_logits": train.balance_applied and train.balance > 0,
        }
        if model.kind == "mixtral":
            shape |= {"intermediate_size": model.hidden, "num_local_experts": model.experts,
                      "sliding_window": None}  # fmt: skip
        else:
            shape |= {"intermediate_size": model.hidden, "moe_intermediate_size": model.hidden,
                      "num_experts": model.experts, "norm_topk_prob": False}  # fmt: skip
    built: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model.kind, **shape))
    return built.float()


def _digits_config(model: ModelSettings) -> dict[str, Any]:
    return {**digits.CONFIG, "width": model.width, "hidden": model.hidden, "blocks": model.layers,
            "num_experts": model.experts, "num_experts_per_tok": model.top_k}  # fmt: skip


def find_routers(model: nn.Module) -> list[nn.Module]:
    """Routers in the order of layers; each has a `weight` (E, D)."""
    if isinstance(model, digits.Digits):
        return [block.mixture.router for block in model.blocks]
    return [layer.mlp.gate for layer in model.model.layers]  # type: ignore[union-attr, operator]


def expert_weights(model: nn.Module) -> list[list[nn.Parameter]]:
    """Of each layer, the parameters that hold all experts, their first axis the expert."""
    if isinstance(model, digits.Digits):
        return [[block.mixture.up, block.mixture.down] for block in model.blocks]
    return [list(layer.mlp.experts.parameters()) for layer in model.model.layers]  # type: ignore[union-attr, operator]


def losses(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats by sequence or image, summed over its loss tokens; where the model is."""
    device = next(model.parameters()).device
    inputs, labels = inputs.to(device), labels.to(device)
    if isinstance(model, digits.Digits):
        return F.cross_entropy(model(inputs), labels, reduction="none")
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1].float()
    flat = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return flat.view(len(inputs), -1).sum(1)


def loss_tokens(model: nn.Module, labels: torch.Tensor) -> int:
    """How many loss tokens a batch has."""
    if isinstance(model, digits.Digits):
        return len(labels)
    return labels[:, 1:].numel()


def save_checkpoint(model: nn.Module, folder: Path, state: dict[str, Any]) -> None:
    """A checkpoint in the Trainer's layout, its state last."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, digits.Digits):
        (folder / "config.json").write_text(json.dumps(model_config(model), indent=2) + "\n")
        tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "trainer_state.json").write_text(json.dumps(state))


def model_config(model: digits.Digits) -> dict[str, Any]:
    """The config.json of the digits' model, read off it."""
    config = copy.deepcopy(digits.CONFIG)
    mixture = model.blocks[0].mixture  # type: ignore[union-attr]
    experts, width = mixture.router.weight.shape  # type: ignore[union-attr]
    return {**config, "width": width, "hidden": mixture.up.shape[2],  # type: ignore[union-attr, index]
            "blocks": len(model.blocks), "num_experts": experts,
            "num_experts_per_tok": mixture.chosen}  # fmt: skip  # type: ignore[union-attr]
