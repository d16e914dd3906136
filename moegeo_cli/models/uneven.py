"""Models whose layers have different numbers of experts. No config class describes them.

Each layer is taken from a model that transformers built with that layer's number for all layers:
so its modules, their settings and shapes are those that the model's own code makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError, UnsupportedArchitectureError
from moegeo_cli.replay.kernels import configs_of
from moegeo_cli.routers.finding import LAYER_INDEX, find_routers


def own_experts(checkpoint: Checkpoint) -> dict[int, int]:
    """Layer -> number of experts, if the layers of a checkpoint differ; else {}.

    Raises:
        ShapeError: what `with_experts_by_layer` raises.
    """
    if checkpoint.weights.obstacle is not None:
        return {}
    try:
        _ = checkpoint.config_architecture
    except MoegeoError:
        return {}  # what is wrong with it is said where it is described
    return dict(checkpoint.architecture.experts_by_layer or ())


def join_layers(build: Callable[[int | None], Any], experts: Mapping[int, int]) -> Any:
    """A model whose layers each have their own number of experts.

    Args:
        build: makes the model with one number of experts in all layers; None for the config's.
        experts: layer -> its number; {} for the config's model as it is.

    Raises:
        UnsupportedArchitectureError: its routers are not in numbered layers.
    """
    if not experts:
        return build(None)
    counts = sorted(set(experts.values()), reverse=True)
    model = build(counts[0])
    places = _layers(model)
    if set(places) != set(experts):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__}: layers with different numbers of experts cannot be built",
            found=f"routers in layers {sorted(places)}, and by the files in {sorted(experts)}",
            hint="`moegeo inspect` and `moegeo check` still describe the checkpoint",
        )
    for count in counts[1:]:
        other = build(count)
        for layer in (layer for layer, own in experts.items() if own == count):
            owner, _, name = places[layer].rpartition(".")
            setattr(model.get_submodule(owner), name, other.get_submodule(places[layer]))
    # These lay the routers of all layers side by side for a loss that is not measured.
    for config in configs_of(model):
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
    return model


def _layers(model: Any) -> dict[int, str]:
    """Layer -> the path of its module, of layers with a router."""
    found = {}
    for router in find_routers(model):
        match = LAYER_INDEX.search(router.path)
        if match is not None:
            found[int(match[1])] = router.path[: match.end(1)]
    return found
