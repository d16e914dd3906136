"""Find the part of a config.json that describes the text model with the experts.

A model of several towers (text, images, sound) nests it. `architecture` reads the routers from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from moegeo_cli.checkpoints.config_facts import find_facts
from moegeo_cli.checkpoints.config_keys import EXPERT_KEYS, ConfigFact, first_value
from moegeo_cli.checkpoints.families import read_families

# Keys under which a model of several towers (text, images, sound) keeps the text model's config.
NESTED_KEYS = ("text_config", "language_config", "llm_config", "thinker_config")


def known_types() -> tuple[str, ...]:
    """The model types in families/, sorted."""
    return tuple(sorted(families_by_type()))


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the model with the experts."""
    return find_text(config, "")[0]


def expert_key(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ConfigFact]:
    """The part of a config that holds the number of experts, and that number with its key."""
    text, text_type = find_text(config, str(config.get("model_type") or "unknown"))
    return text, find_facts(text, families_by_type().get(text_type, {}))["experts"]


def resolve_conflicts(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Find facts that a config holds under several keys with different values.

    Returns:
        The part of the config that holds them; the key that counts -> its value.
    """
    text, text_type = find_text(config, str(config.get("model_type") or "unknown"))
    facts = families_by_type().get(text_type, {})
    found = find_facts(text, facts).values()
    return text, {fact.key: fact.value for fact in found if fact.key and fact.others}


@cache
def families_by_type() -> dict[str, Mapping[str, Any]]:
    """Model type -> facts of its family, from families/."""
    return {name: family for family in read_families() for name in family["types"]}


def find_text(
    config: Mapping[str, Any], model_type: str, depth: int = 3
) -> tuple[Mapping[str, Any], str]:
    """Find the (nested) part of a config that describes the model with the experts.

    Args:
        config: the parsed config.json.
        model_type: its `model_type`.
        depth: levels of nesting that are searched.

    Returns:
        That part and its model type; `config` itself where no part has experts.
    """
    if first_value(config, EXPERT_KEYS) is None and depth:
        for key in NESTED_KEYS:
            nested = config.get(key)
            if isinstance(nested, Mapping):
                guess = next(
                    (t for t in (f"{model_type}_text", model_type) if t in families_by_type()),
                    model_type,
                )
                found, kind = find_text(nested, str(nested.get("model_type") or guess), depth - 1)
                if first_value(found, EXPERT_KEYS) is not None:
                    return found, kind
    return config, model_type
