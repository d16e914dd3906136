"""Choose how a transformers model computes its experts: in a loop, or by a grouped kernel."""

from __future__ import annotations

from typing import Any


def compute_experts_by(model: Any, kind: str) -> None:
    """Choose the implementation of the experts, in all layers.

    Args:
        model: the model.
        kind: transformers' name of the implementation; "eager" is a loop over the experts.
    """
    model.set_experts_implementation(kind)
    chosen = model.config._experts_implementation
    for config in configs_of(model):
        if type(config) is type(model.config) and config._experts_implementation != chosen:
            config._experts_implementation_internal = chosen


def configs_of(model: Any) -> list[Any]:
    """The distinct configs of a model's modules."""
    held = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in held if config is not None}.values())
