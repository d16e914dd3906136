"""Single facts of a config, by the rules with which families/ tells where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moegeo_cli.checkpoints.config_keys import (
    EXPERT_KEYS,
    GROUP_KEYS,
    LAYER_KEYS,
    TOP_K_KEYS,
    Stated,
    find_own,
    find_stated,
    first_integer,
    first_value,
    look_up,
)


def whole_number(config: Mapping[str, Any], key: str | None) -> int:
    """The whole number above 0 under a key; 0 where there is none."""
    value = look_up(config, key) if key else None
    return value if type(value) is int and value > 0 else 0


def real_number(config: Mapping[str, Any], key: str, default: float) -> float:
    """The number under a key, or `default`."""
    value = look_up(config, key)
    return float(value) if isinstance(value, int | float) and value == value else default


def flag(config: Mapping[str, Any], rule: Any) -> bool | None:
    """A fact that is a constant, or [config key, default]."""
    if isinstance(rule, list):
        key, default = rule
        # bailing and kimi rename the flag
        value = first_value(config, (key, "moe_renormalize"))
        return bool(default if value is None else value)
    return rule if isinstance(rule, bool) else None


def bias_rule(facts: Mapping[str, Any]) -> Any:
    """Whether a bias acts on the selection, as `flag` takes it."""
    bias = facts.get("bias", False)
    return [bias, True] if isinstance(bias, str) else bias


def find_facts(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Stated]:
    """What a config says of the number of experts, of K and of groups."""
    own = tuple(facts.get("keys", ()))
    top_k = Stated()
    if "top_k" not in facts:
        find = find_own if facts else find_stated
        top_k = find(config, TOP_K_KEYS, own)
    return {
        "experts": find_stated(config, EXPERT_KEYS, own),
        "top_k": top_k,
        "groups": find_stated(config, GROUP_KEYS, own) if "groups" in facts else Stated(),
    }


def experts_by_layer(
    listed: list[int], layers: int | None, moe_layers: tuple[int, ...] | None
) -> tuple[tuple[int, int], ...] | None:
    """(layer, experts) by a config's list of all layers, or of those with a router."""
    routed = moe_layers if moe_layers is not None else tuple(range(len(listed)))
    if len(set(listed)) < 2:
        return None
    if len(listed) == layers:
        return tuple((layer, listed[layer]) for layer in routed)
    return tuple(zip(routed, listed, strict=True)) if len(listed) == len(routed) else None


def top_k_of(value: Any) -> tuple[int | None, tuple[int, ...] | None]:
    """K of all layers, or K by layer where it varies."""
    if isinstance(value, list) and value and all(type(k) is int and k > 0 for k in value):
        return (value[0], None) if len(set(value)) == 1 else (None, tuple(value))
    return (value if type(value) is int and value > 0 else None), None


def groups_of(config: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """(n_group, topk_group) where they limit the choice."""
    when = facts.get("groups_when")
    if "groups" not in facts or (when and config.get(when[0]) != when[1]):
        return None
    count = find_facts(config, facts)["groups"].value
    count = count if type(count) is int and count > 0 else None
    kept = first_integer(config, ("topk_group",))
    return (count, kept) if count and kept and kept < count else None


def unselected_gradient(facts: Mapping[str, Any], renormalised: bool | None) -> str:
    """The gradient at logits of unselected experts: "zero", "dense" or "verify"."""
    rule = str(facts.get("unselected", "verify"))
    if rule == "unless-renormalised":
        return "zero" if renormalised else "dense"
    return rule


def count_layers(config: Mapping[str, Any], text_type: str) -> int | None:
    """How many layers a model has; None where the config does not say."""
    blocks = config.get("layers_block_type")
    if text_type == "nemotron_h" and isinstance(blocks, list):
        return len(blocks)
    if text_type == "longcat_flash":  # two attention blocks a layer: num_hidden_layers is doubled
        return first_integer(config, ("num_layers",))
    return first_integer(config, LAYER_KEYS)
