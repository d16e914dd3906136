"""Find the decoder layers that have a router from config.json.

Families write this in different ways: a step, a first dense block, a list. `architecture` names
the rule of each family, a key of `LAYER_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_HasRouter = Callable[[int], bool]


def list_moe_layers(
    config: Mapping[str, Any], layers: int | None, rule: str
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """Find the layers with a router.

    Args:
        config: the part of the config that describes the model with the experts.
        layers: number of layers; None where not known.
        rule: a key of `LAYER_RULES`. A list `mlp_layer_types` in the config goes before it.

    Returns:
        Indices of the layers with a router (None where the config does not say), and of those
        that dispatch tokens by a hash of their id.
    """
    types = config.get("mlp_layer_types")
    if layers is None or layers > 10_000:
        return None, ()
    if isinstance(types, list) and len(types) >= layers:
        kinds = [(i, kind) for i, kind in enumerate(types[:layers]) if isinstance(kind, str)]
        hashed = tuple(i for i, kind in kinds if kind == "hash_moe")
        return tuple(i for i, kind in kinds if kind in {"sparse", "moe", "hash_moe"}), hashed
    has = LAYER_RULES.get(rule, _guess)(config)
    return (None if has is None else tuple(i for i in range(layers) if has(i))), ()


def _sparse_step(config: Mapping[str, Any]) -> _HasRouter | None:
    step, listed = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if type(step) is not int or not isinstance(listed, list):
        return None
    dense = {i for i in listed if type(i) is int}
    return lambda i: step > 0 and i not in dense and (i + 1) % step == 0


def _first_dense(config: Mapping[str, Any]) -> _HasRouter | None:
    first = config.get("first_k_dense_replace")
    return (lambda i: i >= first) if type(first) is int else None


def _dense_count(config: Mapping[str, Any]) -> _HasRouter | None:
    count = config.get("num_dense_layers")
    return (lambda i: i >= count) if type(count) is int else None


def _listed(config: Mapping[str, Any]) -> _HasRouter | None:
    listed = config.get("moe_layers")
    if isinstance(listed, list):
        chosen = {i for i in listed if type(i) is int}
        return lambda i: i in chosen
    step = config.get("interleave_moe_layer_step", 1)
    return (lambda i: (i + 1) % step == 0) if type(step) is int and step > 0 else None


def _period(config: Mapping[str, Any]) -> _HasRouter | None:
    period, offset = config.get("expert_layer_period"), config.get("expert_layer_offset")
    if type(period) is not int or type(offset) is not int or period < 1:
        return None
    return lambda i: i % period == offset


def _interval(config: Mapping[str, Any]) -> _HasRouter | None:
    start, end = config.get("moe_layer_start_index", 1), config.get("moe_layer_end_index", -1)
    step = config.get("moe_layer_interval", 1)
    if not all(type(value) is int for value in (start, end, step)) or step < 1:
        return None
    return lambda i: (i + 1) % step == 0 and i >= start and (end == -1 or i <= end)


def _block_types(config: Mapping[str, Any]) -> _HasRouter | None:
    blocks, pattern = config.get("layers_block_type"), config.get("hybrid_override_pattern")
    if isinstance(blocks, list):
        return lambda i: i < len(blocks) and blocks[i] == "moe"
    if isinstance(pattern, str):
        return lambda i: pattern[i : i + 1] == "E"
    return None


def _guess(config: Mapping[str, Any]) -> _HasRouter | None:
    """The rule for an unknown type: only what the config states explicitly."""
    if isinstance(config.get("moe_layers"), list):
        return _listed(config)
    if "first_k_dense_replace" in config and config.get("moe_layer_freq", 1) == 1:
        return _first_dense(config)
    return None


LAYER_RULES: Mapping[str, Callable[[Mapping[str, Any]], _HasRouter | None]] = {
    "all": lambda config: lambda i: True,
    "sparse-step": _sparse_step,
    "first-dense": _first_dense,
    "layer-types": _guess,  # for a config without its list mlp_layer_types
    "dense-count": _dense_count,
    "moe-layers": _listed,
    "period": _period,
    "interval": _interval,
    "block-types": _block_types,
}
