"""Routers of a model: found, described, and each proven to be what it is taken for.

Two independent ways find them: transformers' own records (`_can_record_outputs`) and the
structure of the module tree (a router beside its experts). A router counts as measured
only once its logits have been recomputed from its input, its weight and its bias.

Legend: N tokens, D router input width, E experts, K experts chosen per token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.errors import UnsupportedArchitectureError

ROUTER_NAMES = {"gate", "router", "router_gate"}
ROUTER_CLASS = re.compile(r"(Router|Gate|Gating)$")
EXPERTS_CLASS = re.compile(r"(Experts|NaiveMoe)$")
SELECTION_BIASES = ("e_score_correction_bias", "expert_bias", "correction_bias")
LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|blocks|h|block)\.(\d+)(?:\.|$)")


@dataclass(slots=True)
class Router:
    """One router of a model.

    `weight_ED` is the live parameter, `bias_E` is added to the logits, `selection_bias_E`
    only to the score that selects. `unselected_gradient` is "zero" or "dense".
    """

    layer: int
    path: str
    module: nn.Module
    experts: int
    top_k: int | None
    weight_ED: torch.Tensor
    bias_E: torch.Tensor | None
    selection_bias_E: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class RouterCall:
    """What one forward pass of a router took and gave, rows being tokens.

    Shapes: x_ND as the router received it, logits_NE on the gradient path, weights_NK and
    selected_NK as the model goes on to use them.
    """

    x_ND: torch.Tensor
    logits_NE: torch.Tensor
    weights_NK: torch.Tensor
    selected_NK: torch.Tensor


def find_routers(model: nn.Module) -> list[Router]:
    """All routers of `model`, in the order of its layers.

    Raises:
        UnsupportedArchitectureError: a router's parameters are not of a form we can verify.
    """
    modules = dict(model.named_modules())
    found = _recorded(model, modules)
    found |= {path for path in _structural(modules) if path not in found}
    routers = [_describe(path, modules) for path in found]
    return sorted(routers, key=lambda router: (router.layer, router.path))


def _recorded(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Rule 1: the modules whose output transformers records as router logits."""
    paths: set[str] = set()
    for prefix, part in modules.items():
        records = getattr(part, "_can_record_outputs", None) or {}
        entries = records.get("router_logits", []) if isinstance(records, Mapping) else []
        for entry in entries if isinstance(entries, list | tuple) else [entries]:
            target = getattr(entry, "target_class", entry)
            name = getattr(entry, "layer_name", None)
            if not isinstance(target, type):
                continue
            for path, module in part.named_modules(prefix=prefix):
                if isinstance(module, target) and (name is None or name in f".{path}."):
                    paths.add(path)
    return paths


def _structural(modules: Mapping[str, nn.Module]) -> set[str]:
    """Rule 2: a child that is a router by name or class, beside a child that holds experts."""
    paths: set[str] = set()
    for path, module in modules.items():
        children = dict(module.named_children())
        if not any(
            name == "experts" or EXPERTS_CLASS.search(type(child).__name__)
            for name, child in children.items()
        ):
            continue
        for name, child in children.items():
            if name in ROUTER_NAMES or ROUTER_CLASS.search(type(child).__name__):
                paths.add(f"{path}.{name}" if path else name)
    return paths


def _describe(path: str, modules: Mapping[str, nn.Module]) -> Router:
    """The parameters of the router at `path`."""
    module = modules[path]
    linear = module
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        inner = [m for m in module.modules() if isinstance(m, nn.Linear)]
        if len(inner) != 1:
            raise UnsupportedArchitectureError(
                f"the router {path} ({type(module).__name__}) is not one linear map",
                found=f"{len(inner)} linear layers inside",
                hint="moegeo measures linear routers; see docs/architectures.md",
            )
        linear = inner[0]
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    if weight.ndim != 2:
        raise UnsupportedArchitectureError(
            f"the router {path} has a weight of {weight.ndim} dimensions, not 2"
        )
    bias = getattr(linear, "bias", None)
    parent = modules[path.rpartition(".")[0]]
    layer = LAYER_INDEX.search(path)
    return Router(
        layer=int(layer.group(1)) if layer else 0,
        path=path,
        module=module,
        experts=int(weight.shape[0]),
        top_k=_first_int(
            module, parent, names=("top_k", "num_experts_per_tok", "k", "top_k_experts")
        ),
        weight_ED=weight,
        bias_E=bias if isinstance(bias, torch.Tensor) else None,
        selection_bias_E=_selection_bias(module, parent),
    )


def _first_int(*owners: nn.Module, names: tuple[str, ...]) -> int | None:
    for owner in owners:
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _selection_bias(*owners: nn.Module) -> torch.Tensor | None:
    """The buffer that shifts the choice but not the combine weight (DeepSeek's balancing)."""
    for owner in owners:
        for name in SELECTION_BIASES:
            value = getattr(owner, name, None)
            if isinstance(value, torch.Tensor):
                return value
    return None


def read_call(router: Router, args: tuple[Any, ...], output: Any) -> RouterCall:
    """Take a router's forward pass apart into input, logits, weights and selection.

    Raises:
        UnsupportedArchitectureError: the output is not (logits, weights, indices).
    """
    x = next(a for a in args if isinstance(a, torch.Tensor))
    parts = [p for p in output if isinstance(p, torch.Tensor)] if isinstance(output, tuple) else []
    indices = [p for p in parts if not p.is_floating_point() and p.dtype != torch.bool]
    floats = [p for p in parts if p.is_floating_point()]
    if len(indices) != 1 or len(floats) != 2:
        raise UnsupportedArchitectureError(
            f"the router {router.path} ({type(router.module).__name__}) does not return "
            "(logits, weights, indices)",
            found=", ".join(str(tuple(p.shape)) for p in parts) or type(output).__name__,
        )
    logits, weights = floats
    if logits.shape[-1] != router.experts:
        raise UnsupportedArchitectureError(
            f"the router {router.path} does not return its logits first",
            found=f"{tuple(logits.shape)} for {router.experts} experts",
        )
    selected = indices[0].reshape(-1, indices[0].shape[-1])
    weights = weights.reshape(selected.shape[0], -1)
    if weights.shape[-1] == router.experts != selected.shape[-1]:
        weights = weights.gather(1, selected)
    return RouterCall(
        x_ND=x.reshape(-1, x.shape[-1]),
        logits_NE=logits,
        weights_NK=weights,
        selected_NK=selected,
    )


def verify_call(router: Router, call: RouterCall) -> str | None:
    """Recompute the logits from the input; None if they agree, else what was wrong.

    The product is taken in the dtype of the logits, as some routers raise theirs to
    float32; agreement is to a few units in the last place of the narrower dtype.
    """
    logits = call.logits_NE.detach().reshape(-1, router.experts)
    narrow = min(call.x_ND.dtype.itemsize, logits.dtype.itemsize, router.weight_ED.dtype.itemsize)
    for dtype in {router.weight_ED.dtype, logits.dtype}:
        x = call.x_ND.detach().to(dtype)
        bias = router.bias_E.to(dtype) if router.bias_E is not None else None
        again = F.linear(x, router.weight_ED.detach().to(dtype), bias)
        scale = float(logits.abs().max().clamp_min(1e-30))
        if not torch.isfinite(logits).all():
            return None  # a non-finite router is a finding, not a misread one
        error = float((again.float() - logits.float()).abs().max())
        if error <= scale * (1e-4 if narrow >= 4 else 0.05):
            return None
    return f"logits do not equal the router's weight times its input (off by {error / scale:.2g})"
