"""Describes a checkpoint or a run from headers, names and config.

torch is imported only for pickled weights, because these files have no header.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.accounting import known_unused
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.describing import Describer, SourceFinder
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.hub import open_path
from moegeo_cli.checkpoints.routers import RouterTensors, check_routers, find_router_tensors
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.commands.inspect.record import InspectionRecord, ListedCheckpoint, RouterFacts
from moegeo_cli.errors import MoegeoError


def inspect_checkpoint(
    path: Path | str,
    models: Describer | None = None,
    config: Path | str | None = None,
    fill: SourceFinder | None = None,
) -> InspectionRecord:
    """Describe a checkpoint, or the newest checkpoint of a run with the list of all.

    A dense model, or a family that moegeo cannot measure, is described too. `problem` then holds
    the error that a measurement would raise.

    Args:
        path: a checkpoint or a run.
        models: describes a user's own model; None for models of transformers.
        config: a config.json, or a folder with one, for checkpoints without a config.
        fill: builds the module tree of a config, for adapters.

    Raises:
        PathError, NoCheckpointError, IncompleteCheckpointError, UnsupportedLayoutError: see
            `open_run`.
    """
    run = open_path(path, config) if models is None else models.open(path)
    return InspectionRecord(
        kind="checkpoint" if run.is_single else "run",
        name=run.name,
        **_describe_checkpoint(run.newest, models, fill),
        **({} if run.is_single else _list_run(run)),
    )


def _list_run(run: RunFolder) -> dict[str, Any]:
    """The checkpoints of a run by step, the skipped ones, and which one is described."""
    return {
        "inspected": run.newest.relative,
        "checkpoints": tuple(
            ListedCheckpoint(c.step, c.relative, c.layout) for c in run.checkpoints
        ),
        "skipped": tuple({"path": item.path, "reason": item.reason} for item in run.skipped),
    }


def _describe_checkpoint(
    checkpoint: Checkpoint, models: Describer | None, fill: SourceFinder | None
) -> dict[str, Any]:
    """The facts of one complete checkpoint."""
    own = models is not None and models.own
    index, stored = checkpoint.weights, checkpoint.stored
    config, training = checkpoint.config, checkpoint.training
    problem = None
    architecture = None
    routers: tuple[RouterTensors, ...] = ()
    try:
        if models is None:
            architecture = checkpoint.config_architecture
            architecture = checkpoint.architecture
            routers, problem = _list_routers(index, architecture)
        else:
            architecture = models.describe(checkpoint)
            routers = tuple(models.routers(index, architecture))
            problem = None if routers else "no router among the tensors: see --router"
        index.resolve(None if own or fill is None else partial(fill, checkpoint))
    except MoegeoError as error:
        problem = f"{error.code}: {error.message}"
    return {
        "step": training.step,
        "layout": checkpoint.layout,
        "complete": True,
        "files": tuple(path.name for path in stored.files),
        "bytes": stored.size,
        "left_out": dict(index.left_out),
        "config": _config_place(checkpoint),
        "tensors": len(stored),
        "parameters": index.parameters,
        "dtypes": stored.dtype_counts,
        "weights": index.describe(known_unused(index.names())),
        **_describe_model(config, architecture, routers),
        "framework": training.framework,
        "tokens": training.tokens,
        "settings": dict(training.settings),
        "problem": problem,
        "routers": tuple(
            RouterFacts(
                layer=router.layer,
                router=router.weight,
                shape=tuple(router.shape),
                dtype=index.dtype(router.weight),
                bias=router.bias,
                selection_bias=router.selection_bias,
                main=router.main,
            )
            for router in routers
        ),
    }


def _config_place(checkpoint: Checkpoint) -> str:
    """Path of config.json, relative to the checkpoint's folder."""
    place = checkpoint.config_folder.resolve() / "config.json"
    return Path(os.path.relpath(place, checkpoint.path.resolve())).as_posix()


def _list_routers(
    index: WeightIndex, architecture: Architecture
) -> tuple[tuple[RouterTensors, ...], str | None]:
    """The routers in the files, and the error that measuring them would raise; None for none."""
    problem = f"MG-E021: {architecture.refused}" if architecture.refused else None
    try:
        check_routers(index, architecture)
    except MoegeoError as error:
        problem = f"{error.code}: {error.message}"
    return find_router_tensors(index, architecture), problem


def _describe_model(
    config: dict[str, Any], architecture: Architecture | None, routers: tuple[RouterTensors, ...]
) -> dict[str, Any]:
    """The facts of the architecture; None for what is not known, as in a dense model."""
    a = architecture
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    selection = a.selection if a else None
    expected = a.moe_layers if a else None
    return {
        "model_type": str(config.get("model_type") or (a.model_type if a else "unknown")),
        "architecture": first if isinstance(first, str) else None,
        "known": a.known if a else None,
        "layers": a.layers if a else None,
        "experts": a.experts if a else None,
        "top_k": (a.top_k if a.top_k_by_layer is None else tuple(a.top_k_by_layer)) if a else None,
        "scoring": a.scoring if a else None,
        "renormalised": selection.renormalised if selection else None,
        "selection_bias": selection.bias if selection else None,
        "groups": tuple(selection.groups) if selection and selection.groups else None,
        "unselected_gradient": a.unselected_gradient if a else None,
        "balance_loss_key": a.balance_key if a else None,
        "routers_expected": len(expected) if expected is not None else None,
        "routers_found": sum(router.main for router in routers),
        "notes": tuple(a.notes) if a else (),
    }
