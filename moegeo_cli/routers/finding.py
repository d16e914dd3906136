"""Find the routers of a loaded model and describe them, for the replay.

Two independent rules find them: transformers' records (`_can_record_outputs`), and the structure of
the model (a router beside its experts). The replay (`replay/reading.py`) then verifies each router:
it recomputes the logits from the router's input, weight and bias.

Legend: D router input width, E experts, K experts selected per token.
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

    Attributes:
        layer: index of the layer; 0 where the path holds no number.
        path: module path of the router.
        module: the module that selects experts.
        linear: the module whose weight gives the logits, most often `module` itself.
        parent: the module that holds the router and its experts.
        experts: E, the number of experts that compete for a token.
        top_k: K; None where the modules do not say it.
        weight_ED: the live weight parameter. Its first `experts` rows compete; some routers have
            further rows for shared experts.
        bias_E: bias added to the logits; None without one.
        selection_bias_E: bias added only to the scores that select; None without one.
        skip_expert: an expert without weights that the router reports as expert 0; else None.
        scale: factor on the product of input and weight.
        choice_scoring: for a router that returns logits alone: the scoring by which moegeo
            computes the selected experts. None to use only what the model returns.
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
    choice_scoring: str | None = None


def find_routers(
    model: nn.Module,
    *,
    pattern: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
) -> list[Router]:
    """Find all routers of `model` that text tokens pass.

    Args:
        model: the model. If it has a method `find_routers`, the result of that is returned.
        pattern: pattern of the routers' module names; None to use the two rules of this module.
        top_k: K; None for the value in the modules.
        scoring: see `Router.choice_scoring`.

    Returns:
        The routers, by layer and path.

    Raises:
        UnsupportedArchitectureError: a router is not a single linear map.
        UsageError: the pattern matches no module.
    """
    own = getattr(model, "find_routers", None)
    if own is not None:
        found_own: list[Router] = own()
        return found_own
    modules = dict(model.named_modules())
    if pattern is not None:
        found = _matching(pattern, modules)
    else:
        found = {p for p in _paths(model, modules) if not OTHER_TOWER.search(p)}
    routers = [_describe(path, modules) for path in found]
    for router in routers:
        router.top_k = top_k or router.top_k
        router.choice_scoring = scoring
    return sorted(routers, key=lambda router: (router.layer, router.path))


def find_other_routers(model: nn.Module) -> list[str]:
    """Paths of routers that only image or sound tokens pass."""
    modules = dict(model.named_modules())
    return sorted(p for p in _paths(model, modules) if OTHER_TOWER.search(p))


def _paths(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Paths that either rule finds. A block that contains a found router is left out."""
    found = _recorded(model, modules) | _structural(modules)
    return {p for p in found if not any(q.startswith(f"{p}.") for q in found)}


def _matching(pattern: str, modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules whose names match a user's pattern."""
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
    """The `Router` of the module at `path`."""
    module = modules[path]
    parent = modules[path.rpartition(".")[0]]
    linear = _find_linear(path, module)
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
    """The first number in a path, for one without a usual layer name; 0 without a number."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), 0)


def _find_linear(path: str, module: nn.Module) -> nn.Module:
    """The module whose 2-D weight gives the logits: the router, or a linear layer in it.

    Raises:
        UnsupportedArchitectureError: there is no such layer, or several.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        if weight.ndim != 2:
            raise UnsupportedArchitectureError(
                f"the router {path} has a weight of {weight.ndim} dimensions, not 2"
            )
        return module
    inner = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if len(inner) > 1:  # a small network: take its last layer, which has one row an expert
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
    """The bias that acts on the selection but not on the combine weights (as in DeepSeek-V3)."""
    inside = [m for m in router.modules() if m is not router]
    for owner in (router, parent, *inside):
        for name in MODULE_NAMES:
            value = getattr(owner, name, None)
            if isinstance(value, torch.Tensor):
                return value.reshape(-1)
    return None
