"""Build models whose layers have different numbers of experts, which no config class describes.

For each number of experts, transformers builds a model with that number in all layers. Each layer
is then taken from the model with its number, so its modules and shapes are made by the model's own
code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError, UnsupportedArchitectureError
from moegeo_cli.replay.kernels import configs_of
from moegeo_cli.routers.finding import LAYER_INDEX, find_routers


def experts_by_layer(checkpoint: Checkpoint) -> dict[int, int]:
    """Layer -> number of experts, if the layers of a checkpoint differ; else {}.

    Raises:
        ShapeError: the files and the config contradict each other.
    """
    if checkpoint.weights.obstacle is not None:
        return {}
    try:
        _ = checkpoint.config_architecture
    except MoegeoError:
        return {}  # the error is raised where the architecture is described
    return dict(checkpoint.architecture.experts_by_layer or ())


def join_layers(build: Callable[[int | None], Any], experts: Mapping[int, int]) -> Any:
    """A model whose layers each have their own number of experts.

    Args:
        build: builds the model with a number of experts in all layers; None for the config's.
        experts: layer -> number of experts; {} for the config's own model.

    Raises:
        UnsupportedArchitectureError: the model's routers are not in the layers of `experts`.
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
    # The model would stack the logits of all layers, for a loss that is not measured.
    for config in configs_of(model):
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
    return model


def _layers(model: Any) -> dict[int, str]:
    """Layer with a router -> the path of its module."""
    found = {}
    for router in find_routers(model):
        match = LAYER_INDEX.search(router.path)
        if match is not None:
            found[int(match[1])] = router.path[: match.end(1)]
    return found
