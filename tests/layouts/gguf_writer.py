"""GGUF files of tiny models, by the writer and the name map of the package gguf itself.

What llama.cpp's converter does besides renaming is done here as it does it: experts of a layer in
one tensor, gate and up apart, query and key of its llama architecture in pairs, norms and routers
in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
MOE = {"num_experts": 4, "moe_intermediate_size": 32}
MODELS: dict[str, tuple[gguf.MODEL_ARCH, dict[str, Any]]] = {
    "qwen3_moe": (gguf.MODEL_ARCH.QWEN3MOE, {**MOE, "head_dim": 16, "norm_topk_prob": True}),
    "qwen2_moe": (gguf.MODEL_ARCH.QWEN2MOE, {**MOE, "shared_expert_intermediate_size": 32}),
    "olmoe": (gguf.MODEL_ARCH.OLMOE, {"num_experts": 4}),
    "mixtral": (gguf.MODEL_ARCH.LLAMA, {"num_local_experts": 4}),
}
KINDS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.MXFP4)


def build(model_type: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **MODELS[model_type][1])
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write(model: Any, folder: Path, kind: Kind) -> dict[str, torch.Tensor]:
    """Write FOLDER/model.gguf and config.json; gives the values that transformers should have."""
    model_type = model.config.model_type
    architecture = MODELS[model_type][0]
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    writer = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(2)
    names = gguf.get_tensor_name_map(architecture, 2)
    meant: dict[str, torch.Tensor] = {}
    meant_shape = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for target, name, data in _tensors(model):
        stem, _, last = name.rpartition(".")
        found = names.get_name(stem if last in ("weight", "bias") else name)
        assert found is not None, name
        bare = data.ndim == 1 or "ffn_gate_inp" in found
        own = Kind.F32 if bare else kind
        stored = gguf.quantize(np.ascontiguousarray(data), own)
        writer.add_tensor(f"{found}.{last if last == 'bias' else 'weight'}", stored, raw_dtype=own)
        back = torch.from_numpy(np.array(gguf.dequantize(stored, own))).reshape(data.shape)
        if "self_attn.q_proj" in name or "self_attn.k_proj" in name:
            back = _unpaired(back, model) if model_type == "mixtral" else back
        if target in meant:  # gate, then up
            back = torch.cat([meant[target], back], dim=1)
        meant[target] = back if "gate_up" in target else back.reshape(meant_shape[target])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _tensors(model: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name in transformers, name as the map knows it, values as llama.cpp's converter has them."""
    mixtral = model.config.model_type == "mixtral"
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        known = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
        if name.endswith("experts.gate_up_proj"):
            half = data.shape[1] // 2
            words = ("w1", "w3") if mixtral else ("gate_proj", "up_proj")
            for word, part in zip(words, (data[:, :half], data[:, half:]), strict=True):
                yield name, known.replace("gate_up_proj", word), part
        elif name.endswith("experts.down_proj"):
            yield name, known.replace("down_proj", "w2") if mixtral else known, data
        elif mixtral and ("q_proj" in name or "k_proj" in name):
            yield name, known, _paired(data, model, "q_proj" in name)
        elif name.endswith("shared_expert_gate.weight"):
            yield name, known, data.squeeze()
        else:
            yield name, known, data


def _paired(data: np.ndarray, model: Any, is_query: bool) -> np.ndarray:
    """llama.cpp's LlamaModel.permute."""
    config = model.config
    heads = config.num_attention_heads if is_query else config.num_key_value_heads
    split = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
    return split.swapaxes(1, 2).reshape(data.shape)


def _unpaired(data: torch.Tensor, model: Any) -> torch.Tensor:
    """The same backwards, one row after the other."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    rows = [
        data[head * size + 2 * (place % (size // 2)) + place // (size // 2)]
        for head in range(len(data) // size)
        for place in range(size)
    ]
    return torch.stack(rows)
