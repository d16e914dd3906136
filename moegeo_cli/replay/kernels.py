"""How a model computes its experts: one after another, or by a grouped kernel."""

from __future__ import annotations

from typing import Any


def compute_experts_by(model: Any, kind: str) -> None:
    """Choose how a model computes its experts, in all layers.

    Args:
        model: the module tree.
        kind: a name of transformers, "eager" for one expert after another.
    """
    model.set_experts_implementation(kind)
    chosen = model.config._experts_implementation
    for config in configs_of(model):
        if type(config) is type(model.config) and config._experts_implementation != chosen:
            config._experts_implementation_internal = chosen


def configs_of(model: Any) -> list[Any]:
    """The configs of a model's modules, each once."""
    held = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in held if config is not None}.values())
