"""Read single facts of a config.json (K, groups, layers, gradients) by the rules in families/.

`architecture` puts them together into an `Architecture`. In all functions, `config` is the part
of the config that describes the model with the experts, and `facts` the family's TOML file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moegeo_cli.checkpoints.config_keys import (
    EXPERT_KEYS,
    GROUP_KEYS,
    LAYER_KEYS,
    TOP_K_KEYS,
    ConfigFact,
    find_fact,
    find_family_fact,
    first_integer,
    first_value,
    look_up,
)


def whole_number(config: Mapping[str, Any], key: str | None) -> int:
    """The integer above 0 under a key; 0 where there is none."""
    value = look_up(config, key) if key else None
    return value if type(value) is int and value > 0 else 0


def real_number(config: Mapping[str, Any], key: str, default: float) -> float:
    """The number under a key, or `default`."""
    value = look_up(config, key)
    return float(value) if isinstance(value, int | float) and value == value else default


def flag(config: Mapping[str, Any], rule: Any) -> bool | None:
    """A boolean fact; None where the rule does not give one.

    Args:
        config: the config.
        rule: true, false, or [config key, default].
    """
    if isinstance(rule, list):
        key, default = rule
        # bailing and kimi rename the flag
        value = first_value(config, (key, "moe_renormalize"))
        return bool(default if value is None else value)
    return rule if isinstance(rule, bool) else None


def bias_rule(facts: Mapping[str, Any]) -> Any:
    """The rule, in the form that `flag` takes, for whether a bias acts on the selection alone."""
    bias = facts.get("bias", False)
    return [bias, True] if isinstance(bias, str) else bias


def find_facts(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, ConfigFact]:
    """What a config says of the number of experts ("experts"), of K ("top_k") and of "groups"."""
    own = tuple(facts.get("keys", ()))
    top_k = ConfigFact()
    if "top_k" not in facts:
        find = find_family_fact if facts else find_fact
        top_k = find(config, TOP_K_KEYS, own)
    return {
        "experts": find_fact(config, EXPERT_KEYS, own),
        "top_k": top_k,
        "groups": find_fact(config, GROUP_KEYS, own) if "groups" in facts else ConfigFact(),
    }


def experts_by_layer(
    listed: list[int], layers: int | None, moe_layers: tuple[int, ...] | None
) -> tuple[tuple[int, int], ...] | None:
    """(layer, experts) of each layer with a router; None where all have the same number.

    Args:
        listed: a config's list of numbers of experts, for all layers or for those with a router.
        layers: number of the model's layers.
        moe_layers: the layers with a router; None where not known.

    Returns:
        None too where the list has neither length.
    """
    routed = moe_layers if moe_layers is not None else tuple(range(len(listed)))
    if len(set(listed)) < 2:
        return None
    if len(listed) == layers:
        return tuple((layer, listed[layer]) for layer in routed)
    return tuple(zip(routed, listed, strict=True)) if len(listed) == len(routed) else None


def parse_top_k(value: Any) -> tuple[int | None, tuple[int, ...] | None]:
    """(K of all layers, None), or (None, K by layer) where layers differ."""
    if isinstance(value, list) and value and all(type(k) is int and k > 0 for k in value):
        return (value[0], None) if len(set(value)) == 1 else (None, tuple(value))
    return (value if type(value) is int and value > 0 else None), None


def find_groups(config: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """(n_group, topk_group) where the selection is limited to the best groups, else None."""
    when = facts.get("groups_when")
    if "groups" not in facts or (when and config.get(when[0]) != when[1]):
        return None
    count = find_facts(config, facts)["groups"].value
    count = count if type(count) is int and count > 0 else None
    kept = first_integer(config, ("topk_group",))
    return (count, kept) if count and kept and kept < count else None


def unselected_gradient(facts: Mapping[str, Any], renormalised: bool | None) -> str:
    """The gradient of the loss at logits of unselected experts.

    Returns:
        "zero", "dense", or "verify" where it is not known and must be measured.
    """
    rule = str(facts.get("unselected", "verify"))
    if rule == "unless-renormalised":
        return "zero" if renormalised else "dense"
    return rule


def count_layers(config: Mapping[str, Any], text_type: str) -> int | None:
    """How many layers a model has; None where the config does not say it."""
    blocks = config.get("layers_block_type")
    if text_type == "nemotron_h" and isinstance(blocks, list):
        return len(blocks)
    if text_type == "longcat_flash":  # two attention blocks a layer: num_hidden_layers is doubled
        return first_integer(config, ("num_layers",))
    return first_integer(config, LAYER_KEYS)
