"""Look up a fact of config.json that families write under different keys.

A config may hold a fact twice: under an old and a new key, or under another framework's key. The
key that the family's own code reads counts. Keys with another value are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXPERT_KEYS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts",
    "ffn_config.moe_num_experts",
)  # fmt: skip
TOP_K_KEYS = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k",
    "top_k_experts", "num_selected_experts", "ffn_config.moe_top_k",
)  # fmt: skip
GROUP_KEYS = ("n_group", "num_expert_group")
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
HIDDEN_KEYS = ("hidden_size", "d_model", "n_embd")


@dataclass(frozen=True, slots=True)
class ConfigFact:
    """A fact as a config states it. All fields are None or () where the config lacks it.

    Attributes:
        value: its value under `key`.
        key: the key that counts. None with `others` given: only keys that the family's own code
            does not read.
        others: other keys for the same fact whose values differ.
        other_values: their values.
    """

    value: Any = None
    key: str | None = None
    others: tuple[str, ...] = ()
    other_values: tuple[Any, ...] = ()

    def conflict(self, family: str | None) -> str | None:
        """A sentence on keys that contradict each other; None where none do.

        Args:
            family: the model type; None for an unknown one.
        """
        if not self.others:
            return None
        pairs = zip(self.others, self.other_values, strict=True)
        other = ", ".join(f"{key} = {value!r:.40}" for key, value in pairs)
        if self.key is None:
            return f"config.json says {other}, which {family} does not read: its own default counts"
        why = f"the key of {family}" if family else "the more usual key"
        own = f"{self.key} = {self.value!r:.40}"
        return f"config.json says {own} and {other}: {self.key} counts, {why}"


def find_fact(
    config: Mapping[str, Any], keys: Sequence[str], own: Sequence[str] = ()
) -> ConfigFact:
    """Look up a fact that a config may hold under several keys.

    Args:
        config: the part of the config that describes the model with the experts.
        keys: all known keys for the fact; the first that the config has counts.
        own: keys that the family's own code reads; they come before `keys`.
    """
    order = [key for key in own if key in keys] + [key for key in keys if key not in own]
    held = [(key, value) for key in order if (value := look_up(config, key)) is not None]
    if not held:
        return ConfigFact()
    (key, value), *rest = held
    differ = [(other, found) for other, found in rest if found != value]
    return ConfigFact(value, key, tuple(k for k, _ in differ), tuple(v for _, v in differ))


def find_family_fact(
    config: Mapping[str, Any], keys: Sequence[str], own: Sequence[str]
) -> ConfigFact:
    """Look up a fact only under the keys that the family's own code reads.

    Args:
        config: the part of the config that describes the model with the experts.
        keys: all known keys for the fact. Where `own` holds none of them, the family's code reads
            the first.
        own: keys that the family's own code reads.

    Returns:
        The fact; without `key` where only keys hold it that the family does not read.
    """
    found = find_fact(config, keys, own)
    read = [key for key in own if key in keys] or [keys[0]]
    if found.key is None or found.key in read:
        return found
    pairs = [(key, value) for key in keys if (value := look_up(config, key)) is not None]
    return ConfigFact(None, None, tuple(k for k, _ in pairs), tuple(v for _, v in pairs))


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value under `key`, which may be a path such as `ffn_config.moe_top_k`; None if absent."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def first_value(config: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of `keys` that the config has; None where it has none of them."""
    return find_fact(config, keys).value


def first_integer(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The value of the first of `keys` that the config has, if it is an integer above 0."""
    value = first_value(config, keys)
    return value if type(value) is int and value > 0 else None
