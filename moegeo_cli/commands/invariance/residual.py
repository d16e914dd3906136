"""Finds which parameters of a decoder read the residual stream, and which write to it.

A parameter is recognised by the end of its name. One unknown parameter makes the whole structure
unknown, because a rewriting that misses a reader would change the model's outputs.

Legend: D width of the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

# They read the output of the norm before attention.
_ATTENTION_READERS = ("q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa")
_ATTENTION_WRITERS = ("o_proj",)
# Parameters inside attention, and biases of readers: no axis is the residual stream.
_ATTENTION_INNER = (
    "q_b_proj.weight", "kv_b_proj.weight", "q_norm.weight", "k_norm.weight",
    "q_a_layernorm.weight", "kv_a_layernorm.weight", "sinks", "q_proj.bias", "k_proj.bias",
    "v_proj.bias", "q_a_proj.bias", "kv_a_proj_with_mqa.bias",
)  # fmt: skip
_MLP_READERS = re.compile(
    r"(gate_proj|up_proj|gate|router|shared_expert_gate|router\.layer)\.weight$"
)
_MLP_WRITERS = re.compile(r"down_proj\.(weight|bias)$")
_MLP_INNER = re.compile(
    r"(gate_up_proj_bias|e_score_correction_bias|(gate|router|gate_proj|up_proj)\.bias)$"
)
_FUSED_READER, _FUSED_WRITER = "gate_up_proj", "down_proj"


class NotApplicable(Exception):  # noqa: N818 - an answer, not an error
    """The model does not allow a rewriting. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Use:
    """A parameter, and which of its axes is the residual stream."""

    tensor: torch.Tensor
    axis: int


@dataclass(slots=True)
class Branch:
    """A norm, and the parameters that read its output."""

    norm: nn.Parameter
    readers: list[Use] = field(default_factory=list)


@dataclass(slots=True)
class Residual:
    """All parameters that read or write the residual stream.

    Attributes:
        branches: two branches per layer (attention, MLP), then the branch of the head.
        before_router: the MLP branch of each decoder layer, by the layer's index.
        writers: the parameters that write.
    """

    branches: list[Branch]
    before_router: dict[int, Branch]
    writers: list[Use]


def find_residual(model: nn.Module) -> Residual:
    """Find the readers and writers among all parameters of a decoder-only model.

    An lm_head that shares its weight with the embedding gets a copy of it.

    Raises:
        NotApplicable: a parameter whose role is not known.
    """
    decoder = getattr(model, "model", None)
    head = getattr(model, "lm_head", None)
    for name in ("embed_tokens", "layers", "norm"):
        if not hasattr(decoder, name):
            raise NotApplicable(f"the model has no {name}")
    assert decoder is not None
    if head is None:
        raise NotApplicable("the model has no lm_head")
    if head.weight is decoder.embed_tokens.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    width = decoder.embed_tokens.weight.shape[1]
    writers = [Use(decoder.embed_tokens.weight, 1)]
    branches, before_router = [], {}
    for index, layer in enumerate(decoder.layers):
        first, second = _norms(layer)
        attention, mlp = Branch(first), Branch(second)
        for name, use, writes in _uses(layer, width):
            if use is None:
                continue
            if writes:
                writers.append(use)
            else:
                (attention if name.startswith("self_attn.") else mlp).readers.append(use)
        branches += [attention, mlp]
        before_router[index] = mlp
    branches.append(Branch(decoder.norm.weight, [Use(head.weight, 1)]))
    return Residual(branches, before_router, writers)


def _norms(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    found = []
    for name in ("input_layernorm", "post_attention_layernorm"):
        norm = getattr(layer, name, None)
        if norm is None or "RMSNorm" not in type(norm).__name__:
            raise NotApplicable(f"a layer has no RMSNorm called {name}")
        found.append(norm.weight)
    return found[0], found[1]


def _uses(layer: nn.Module, width: int) -> Iterator[tuple[str, Use | None, bool]]:
    """Name, use, and whether it writes, of each parameter of a layer.

    The use is None for a parameter inside a block.

    Raises:
        NotApplicable: a parameter whose role is not known.
    """
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    for name, tensor in tensors:
        if name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            continue
        part, _, rest = name.partition(".")
        if part == "self_attn":
            stem, _, kind = rest.partition(".")
            if rest.endswith(_ATTENTION_INNER):
                yield name, None, False
            elif stem in _ATTENTION_READERS and kind == "weight":
                yield name, Use(tensor, 1), False
            elif stem in _ATTENTION_WRITERS:
                yield name, Use(tensor, 0), True
            else:
                raise NotApplicable(f"the role of {name} is not known")
        elif _MLP_INNER.search(name):
            yield name, None, False
        elif name.endswith(_FUSED_READER) or name.endswith(f".{_FUSED_WRITER}"):
            yield name, Use(tensor, _fused_axis(name, tensor, width)), _FUSED_WRITER in name
        elif name.endswith("down_proj_bias"):
            yield name, Use(tensor, 1), True
        elif _MLP_WRITERS.search(name):
            yield name, Use(tensor, 0), True
        elif _MLP_READERS.search(name):
            yield name, Use(tensor, 1), False
        else:
            raise NotApplicable(f"the role of {name} is not known")


def _fused_axis(name: str, tensor: torch.Tensor, width: int) -> int:
    """Which axis of a fused expert tensor is the residual stream."""
    axes = [a for a in (1, 2) if tensor.shape[a] == width]
    if len(axes) != 1:
        usual = 2 if name.endswith(_FUSED_READER) else 1
        if not axes:
            raise NotApplicable(f"no axis of {name} is the residual stream")
        return usual
    return axes[0]
