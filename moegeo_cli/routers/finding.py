"""Finds the routers of a model, describes them, and verifies each.

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

from moegeo_cli.checkpoints.bias_names import MODULE_NAMES
from moegeo_cli.checkpoints.patterns import compile_pattern
from moegeo_cli.checkpoints.routers import OTHER_TOWER
from moegeo_cli.errors import UnsupportedArchitectureError, UsageError

ROUTER_NAMES = {"gate", "router", "router_gate"}
ROUTER_CLASS = re.compile(r"(Router|Gate|Gating)$")
EXPERTS_CLASS = re.compile(r"(Experts|NaiveMoe)$")
TOP_K_KEYS = ("top_k_experts", "moe_topk", "moe_top_k", "moe_k")
LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|blocks|h|block)\.(\d+)(?:\.|$)")


@dataclass(slots=True)
class Router:
    """One router of a model.

    `module` is what decides; `linear` the module whose weight makes the logits, most often
    the same; `parent` what holds the router and its experts. `weight_ED` is the live
    parameter, whose first `experts` rows compete (some routers score shared experts in further
    rows); `bias_E` is added to the logits, `selection_bias_E` only to the score that selects.
    `skip_expert` is an expert without work that the router reports as expert 0. `scale` is a
    factor that the router takes the product by. `computed` is the scoring by which a choice is
    computed where the router gives logits alone; None where only what the model says of its
    choice counts.
    """

    layer: int
    path: str
    module: nn.Module
    linear: nn.Module
    parent: nn.Module
    experts: int
    top_k: int | None
    weight_ED: torch.Tensor
    bias_E: torch.Tensor | None
    selection_bias_E: torch.Tensor | None
    skip_expert: int | None = None
    scale: float = 1.0
    computed: str | None = None


def find_routers(
    model: nn.Module,
    *,
    pattern: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
) -> list[Router]:
    """All routers of `model` that text passes, in the order of its layers.

    Args:
        model: the model; one that has a `find_routers` of its own answers for itself.
        pattern: of the routers' module names; None for the two ways above.
        top_k: experts a token; None for what the modules say.
        scoring: by which a choice is computed where routers give logits alone; None for never.

    Raises:
        UnsupportedArchitectureError: a router's parameters are not of a form we can verify.
        UsageError: the pattern fits no module.
    """
    own = getattr(model, "find_routers", None)
    if own is not None:
        found_own: list[Router] = own()
        return found_own
    modules = dict(model.named_modules())
    if pattern is not None:
        found = _picked(pattern, modules)
    else:
        found = {p for p in _paths(model, modules) if not OTHER_TOWER.search(p)}
    routers = [_describe(path, modules) for path in found]
    for router in routers:
        router.top_k = top_k or router.top_k
        router.computed = scoring
    return sorted(routers, key=lambda router: (router.layer, router.path))


def find_other_routers(model: nn.Module) -> list[str]:
    """Paths of routers that only image or sound tokens reach."""
    modules = dict(model.named_modules())
    return sorted(p for p in _paths(model, modules) if OTHER_TOWER.search(p))


def _paths(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Routers by either rule. Of a block that returns its router's output, the router itself."""
    found = _recorded(model, modules) | _structural(modules)
    return {p for p in found if not any(q.startswith(f"{p}.") for q in found)}


def _picked(pattern: str, modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules whose names fit a user's pattern."""
    fits = compile_pattern(pattern)
    found = {path for path in modules if path and fits(path)}
    if not found:
        linear = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
        raise UsageError(
            f"--router {pattern!r} fits no module of the model",
            found=f"linear layers: {', '.join(linear[:8])}{' …' if len(linear) > 8 else ''}",
            hint="a glob over module names like 'blocks.*.router', or a regex after 're:'",
        )
    return found


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
    parent = modules[path.rpartition(".")[0]]
    linear = _product(path, module)
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    bias = getattr(linear, "bias", None)
    layer = LAYER_INDEX.search(path)
    rows = int(weight.shape[0])
    shared = getattr(module, "n_shared_experts", 0)
    own = getattr(module, "num_experts", None)
    skips = getattr(module, "num_router_classes", None) == rows == (own or 0) + 1
    return Router(
        layer=int(layer.group(1)) if layer else _any_number(path),
        path=path,
        module=module,
        linear=linear,
        parent=parent,
        experts=rows - shared if shared and own == rows - shared else rows,
        top_k=_first_int(module, parent, names=("top_k", "num_experts_per_tok", "k"))
        or _first_int(getattr(module, "config", None), names=("num_experts_per_tok", *TOP_K_KEYS)),
        weight_ED=weight,
        bias_E=bias if isinstance(bias, torch.Tensor) else None,
        selection_bias_E=_selection_bias(module, parent),
        skip_expert=own if skips else None,
        scale=float(getattr(module, "output_multiplier", 1.0)),
    )  # fmt: skip


def _any_number(path: str) -> int:
    """The first number in a path without a usual layer name, else 0."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), 0)


def _product(path: str, module: nn.Module) -> nn.Module:
    """The module whose 2-D weight makes the logits: the router, or a linear layer in it.

    Raises:
        UnsupportedArchitectureError: not one such layer.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        if weight.ndim != 2:
            raise UnsupportedArchitectureError(
                f"the router {path} has a weight of {weight.ndim} dimensions, not 2"
            )
        return module
    inner = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if len(inner) > 1:  # a small network: its last layer has one row an expert
        rows = {getattr(module, name, None) for name in ("num_router_classes", "num_experts")}
        inner = [m for m in inner if m.out_features in rows and m.in_features not in rows]
    if len(inner) != 1:
        raise UnsupportedArchitectureError(
            f"the router {path} ({type(module).__name__}) is not one linear map",
            found=f"{len(inner)} linear layers inside that could make its logits",
            hint="moegeo measures linear routers; see docs/reference/architectures.md",
        )
    return inner[0]


def _first_int(*owners: Any, names: tuple[str, ...]) -> int | None:
    for owner in owners:
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _selection_bias(router: nn.Module, parent: nn.Module) -> torch.Tensor | None:
    """The buffer that shifts the choice but not the combine weight (DeepSeek's balancing)."""
    inside = [m for m in router.modules() if m is not router]
    for owner in (router, parent, *inside):
        for name in MODULE_NAMES:
            value = getattr(owner, name, None)
            if isinstance(value, torch.Tensor):
                return value.reshape(-1)
    return None
