"""The summary of one checkpoint: sums of its MoE layers, and digests of all other tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.accounting import FLOATS
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.describing import Describer, SourceFinder
from moegeo_cli.checkpoints.effective import EffectiveWeights
from moegeo_cli.checkpoints.misplaced import layer_path
from moegeo_cli.checkpoints.routers import (
    RouterTensors,
    check_routers,
    find_router_tensors,
)
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.reading import MoELayer, digest_names, first_rows, read_layers
from moegeo_cli.commands.check.summing import sum_layer
from moegeo_cli.errors import MoegeoError
from moegeo_cli.geometry.fresh import MOST_ROWS, combine_scores, row_alignment

ATTENTION_READ = 16
_ATTENTION = re.compile(r"attn|attention|(?:^|\.)mixer\.|conv1d|(?:^|\.)mamba")
_NORM = re.compile(r"norm\w*\.weight$|(?:^|\.)ln_\w+\.weight$")
_NORM_BEFORE = re.compile(
    r"(?:post_attention_layernorm|pre_feedforward_layernorm|ffn_norm|pre_mlp_layernorm|ln_2|norm_2"
    r"|norm2)\.weight$"
)
_LOADS = re.compile(r"(?:tokens_per_expert|expert_loads?|expert_counts?|expert_usage)\w*$")
_FREEZE = re.compile(r"(?:freez|frozen)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CheckpointSums:
    """The summary of one checkpoint, in plain values.

    Attributes:
        quick: whether only routers, biases and vectors were read.
        layers: the sums of each MoE layer.
        rest: every other tensor -> (kind, number of elements, digest); kind is "attention" or
            "other". With `quick`, only vectors.
        fresh: whether all norm weights are constant, as before the first step of training; None
            if there are no norm weights.
        facts: of the architecture: model_type, experts, top_k, scoring, renormalised, hash_layers.
        elements: number of weights of "router" and of "experts".
        frozen_by: settings or files which say that weights are frozen, in words.
        scheme: forms of quantisation.
        bytes_read: number of bytes read.
        notes: notes on how the checkpoint was read.
        fraction: share of the planned training that is done; None if the files do not say.
        alignment: `row_alignment` pooled over at most `ATTENTION_READ` attention matrices; None if
            there are none, and with `quick`.
    """

    quick: bool
    layers: tuple[LayerSums, ...]
    rest: Mapping[str, tuple[str, int, str]]
    fresh: bool | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    elements: Mapping[str, int] = field(default_factory=dict)
    frozen_by: tuple[str, ...] = ()
    scheme: tuple[str, ...] = ()
    bytes_read: int = 0
    notes: tuple[str, ...] = ()
    fraction: float | None = None
    alignment: float | None = None


def sum_checkpoint(
    checkpoint: Checkpoint,
    *,
    quick: bool,
    models: Describer | None = None,
    advance: Callable[[int], object] | None = None,
    fill: SourceFinder | None = None,
) -> CheckpointSums:
    """Read a checkpoint once and summarise it.

    Args:
        checkpoint: a complete checkpoint.
        quick: read only routers, biases and vectors.
        models: describes a user's own model; None for models of transformers.
        advance: is called with the number of bytes of each part that was read.
        fill: builds the module tree of a config, for adapters.

    Raises:
        MoegeoError: a dense model, a router that is missing from the files, damaged files, or an
            adapter that cannot be merged.
    """
    own = models is not None and models.own
    index, config = checkpoint.weights, checkpoint.config
    index.resolve(None if own or fill is None else partial(fill, checkpoint))
    architecture = _describe(checkpoint, models)
    before = reported = index.bytes_read
    routers, notes = _routers(index, architecture, models if own else None)
    by_layer: dict[str, list[str]] = {}
    for name in index.names():
        by_layer.setdefault(layer_path(name), []).append(name)
    sums, taken, elements = [], set(), {"router": 0, "experts": 0}

    def report_progress() -> None:
        nonlocal reported
        if advance is not None:
            advance(index.bytes_read - reported)
        reported = index.bytes_read

    for layer in read_layers(index, routers, architecture):
        layer_names = by_layer.get(layer_path(layer.router.module), [])
        norm, loads = (
            _find_vector(index, layer_names, _NORM_BEFORE),
            _find_vector(index, layer_names, _LOADS),
        )
        sums.append(sum_layer(layer, architecture, quick=quick, norm_D=norm, loads=loads))
        router_names, expert_names = _names_of(layer)
        taken |= {*router_names, *expert_names, *(n for n in layer_names if _LOADS.search(n))}
        elements["router"] += sum(index.info(n).elements for n in router_names)
        elements["experts"] += sum(index.info(n).elements for n in expert_names)
        report_progress()
    rest = {}
    for name in index.names():
        if name in taken or (quick and len(index.shape(name)) > 1):
            continue
        kind = "attention" if _ATTENTION.search(name) else "other"
        rest[name] = (kind, index.info(name).elements, digest_names(index, [name]))
        report_progress()
    attention = [n for n, entry in rest.items() if entry[0] == "attention"]
    alignment = None if quick else _alignment(index, attention)
    report_progress()
    return CheckpointSums(
        quick=quick,
        layers=tuple(sums),
        rest=rest,
        fresh=_is_fresh(index, [n for n in rest if _NORM.search(n)]),
        facts=_facts(config, architecture),
        elements=elements,
        frozen_by=_frozen_by(config, index),
        scheme=index.record.scheme,
        bytes_read=index.bytes_read - before,
        notes=notes,
        fraction=checkpoint.training.fraction,
        alignment=alignment,
    )


def _alignment(index: EffectiveWeights, names: Sequence[str]) -> float | None:
    """Row alignment of a few matrices, computed on the first rows of each."""
    matrices = [n for n in names if len(index.shape(n)) == 2 and index.dtype(n) in FLOATS]
    chosen = matrices[:: max(1, -(-len(matrices) // ATTENTION_READ))]
    scores = [row_alignment(first_rows(index, name, MOST_ROWS)) for name in chosen]
    return combine_scores([score for score in scores if score is not None])


def _describe(checkpoint: Checkpoint, models: Describer | None) -> Architecture:
    if models is not None and models.own:
        return models.describe(checkpoint)
    if checkpoint.weights.obstacle is not None:
        return checkpoint.config_architecture
    return checkpoint.architecture


def _routers(
    index: EffectiveWeights, architecture: Architecture | None, models: Describer | None
) -> tuple[list[RouterTensors], tuple[str, ...]]:
    """The routers of the language model, and notes.

    Routers that contradict a refused architecture are returned too, with a note.

    Raises:
        MoegeoError: no router was found, or the routers contradict the config.
    """
    if models is not None and architecture is not None:
        return list(models.routers(index, architecture)), ()
    notes: list[str] = []
    assert architecture is not None
    if architecture.refused:
        notes.append(f"{architecture.text_type}: {architecture.refused}")
    obstacle = index.obstacle
    found = [r for r in find_router_tensors(index, architecture) if r.main]
    if obstacle is not None and found:
        notes.append(f"{obstacle.message}; unknown values are compared by their bytes only")
        return found, tuple(notes)
    try:
        return list(check_routers(index, architecture)), tuple(notes)
    except MoegeoError as error:
        if not found or not architecture.refused:
            raise
        notes.append(error.message)
        return found, tuple(notes)


def _names_of(layer: MoELayer) -> tuple[set[str], set[str]]:
    router = layer.router
    routers = {n for n in (router.weight, router.bias, router.selection_bias) if n is not None}
    return routers, {t.name for tensors in layer.experts.values() for t in tensors}


def _find_vector(
    index: EffectiveWeights, names: Sequence[str], pattern: re.Pattern[str]
) -> np.ndarray[Any, Any] | None:
    """The first vector of a layer whose name matches a pattern, float32; None if there is none."""
    for name in names:
        if pattern.search(name) and len(index.shape(name)) == 1:
            try:
                return np.asarray(index.read(name), dtype=np.float32)
            except MoegeoError:
                return None
    return None


def _is_fresh(index: EffectiveWeights, norms: Sequence[str]) -> bool | None:
    """Whether all norm weights are constant, as after initialisation; None if there are none."""
    seen = False
    for name in norms:
        if len(index.shape(name)) != 1 or index.dtype(name) not in FLOATS:
            continue
        values = index.read(name)
        if values.size < 2:
            continue
        seen = True
        if (values != values[0]).any():
            return False
    return True if seen else None


def _facts(config: Mapping[str, Any], architecture: Architecture | None) -> dict[str, Any]:
    if architecture is None:
        return {"model_type": str(config.get("model_type") or "unknown")}
    return {
        "model_type": architecture.model_type,
        "experts": architecture.experts,
        "top_k": architecture.top_k,
        "scoring": architecture.scoring,
        "renormalised": architecture.selection.renormalised,
        "hash_layers": list(architecture.hash_layers),
    }


def _frozen_by(config: Mapping[str, Any], index: EffectiveWeights) -> tuple[str, ...]:
    """The settings or files which say that weights were frozen on purpose."""
    found = []
    if index.record.adapter is not None:
        found.append(index.record.adapter)
    for part in (config, *(v for v in config.values() if isinstance(v, Mapping))):
        for key, value in part.items():
            if _FREEZE.search(str(key)) and value not in (False, None, 0, "", [], {}):
                found.append(f"config.json: {key} = {value!r}"[:120])
    return tuple(dict.fromkeys(found))
