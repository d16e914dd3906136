"""Config keys under which families write the same fact, and which of several counts.

A config may hold a fact twice: an old key beside a new one, or another framework's. The key that
the family's own code reads counts; the others are said where they differ.
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
class Stated:
    """A fact of a config: its value, the key that counts, and other keys that say otherwise.

    All None and () where the config does not say it. Without `key`, `others` are keys that the
    family's own code does not read.
    """

    value: Any = None
    key: str | None = None
    others: tuple[str, ...] = ()
    other_values: tuple[Any, ...] = ()

    def conflict(self, family: str | None) -> str | None:
        """In words, where other keys say otherwise.

        Args:
            family: the model type; None for one that is not known.
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


def find_stated(config: Mapping[str, Any], keys: Sequence[str], own: Sequence[str] = ()) -> Stated:
    """A fact that a config may hold under several keys.

    Args:
        config: the part of the config that describes the model with the experts.
        keys: all keys that are known for the fact, in the order in which they are believed.
        own: keys of the family's own code, which go before.
    """
    order = [key for key in own if key in keys] + [key for key in keys if key not in own]
    held = [(key, value) for key in order if (value := look_up(config, key)) is not None]
    if not held:
        return Stated()
    (key, value), *rest = held
    differ = [(other, found) for other, found in rest if found != value]
    return Stated(value, key, tuple(k for k, _ in differ), tuple(v for _, v in differ))


def find_own(config: Mapping[str, Any], keys: Sequence[str], own: Sequence[str]) -> Stated:
    """A fact as the family's own code reads it: under one of its own keys, or not at all.

    Args:
        config: the part of the config that describes the model with the experts.
        keys: all keys that are known for the fact; the first is the family's where `own` has none.
        own: keys of the family's own code.
    """
    found = find_stated(config, keys, own)
    read = [key for key in own if key in keys] or [keys[0]]
    if found.key is None or found.key in read:
        return found
    pairs = [(key, value) for key in keys if (value := look_up(config, key)) is not None]
    return Stated(None, None, tuple(k for k, _ in pairs), tuple(v for _, v in pairs))


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a key.subkey; None where absent."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def first_value(config: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of some keys that a config has; None where it has none."""
    return find_stated(config, keys).value


def first_integer(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The same, where it is a whole number above 0."""
    value = first_value(config, keys)
    return value if type(value) is int and value > 0 else None
