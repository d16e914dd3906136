r"""The metrics of the check report: norms, ranks and distances of a layer, and their null values.

Null values are those of random matrices of the same shape with independent Gaussian entries. For
the stable rank it is a mean over a few draws. The mean absolute cosine of two random vectors in D
dimensions is :math:`\Gamma(D/2) / (\sqrt\pi\,\Gamma((D+1)/2))`. The distance of two independent
experts is the root of the sum of their squared norms. Distances are computed from sketches
(`sketches.py`), with a standard error of about 9% each and less for means.

Legend: E experts, D width of the router's input.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from moegeo_cli.commands.check.coupling import NAME as COUPLING
from moegeo_cli.commands.check.history import Past
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.sketches import unpack
from moegeo_cli.commands.check.state_rules import identical_groups
from moegeo_cli.explanations.metrics import specs
from moegeo_cli.geometry.coupling import own_row_share
from moegeo_cli.records import Metric, Metrics
from moegeo_cli.records.check import CheckedLayer

NULL_DRAWS, NULL_ENTRIES = 8, 1 << 21
FIRST = "there is no earlier checkpoint"
NO_BIAS = "the previous checkpoint has no selection bias for this router"
NO_ROUTER = "the first checkpoint does not have this router"
QUICK = "experts were not read (--quick)"
OVER_LAYERS = (
    "row_norm", "row_norm_spread", "stable_rank", "router_cosine", "bias_spread", "bias_drift",
    "expert_norm", "expert_norm_spread", "expert_norm_top", "expert_distance", "expert_drift",
    "own_row",
)  # fmt: skip


def describe_layer(layer: LayerSums, past: Past) -> CheckedLayer:
    """The record of a layer for the report.

    Args:
        layer: a layer of the checkpoint `past.now`.
        past: the checkpoint with its past.
    """
    metrics = {
        **_router_metrics(layer),
        **_bias_metrics(layer, _layer_at(layer, past, past.place - 1), past),
        **_expert_metrics(layer, _layer_at(layer, past, 0), past),
        "own_row": _own_row(layer, quick=past.now.sums.quick),
    }
    return CheckedLayer(
        layer=layer.layer,
        router=layer.router,
        experts=layer.experts,
        top_k=layer.top_k,
        metrics=metrics,
        router_digest=layer.router_digest,
        bias_digest=layer.bias_digest,
        row_norms=layer.row_norms or None,
        selection_bias=layer.selection_bias,
        expert_norms=layer.expert_norms,
        masked=layer.masked,
        identical=tuple(identical_groups(layer)),
        reasons=layer.reasons,
    )


def describe_checkpoint(layers: Sequence[CheckedLayer], past: Past) -> Metrics:
    """The metrics of a checkpoint: means over layers, and shares of weights that moved."""
    found: dict[str, Metric] = {}
    for name in OVER_LAYERS:
        own = [x.metrics[name] for x in layers if name in x.metrics]
        values = [m.value for m in own if m.value is not None]
        if values:
            nulls = [m.null_value for m in own if m.null_value is not None]
            null = statistics.fmean(nulls) if nulls else None
            found[name] = _metric(name, statistics.fmean(values), null, len(values))
        elif own:
            found[name] = _absent(name, own[0].reason)
    return {**found, **_moved(past)}


def _router_metrics(layer: LayerSums) -> dict[str, Metric]:
    norms = _known(layer.row_norms)
    if not norms:
        reason = layer.reasons.get("router", "the router's values could not be read")
        names = ("row_norm", "row_norm_spread", "stable_rank", "router_cosine")
        return {name: _absent(name, reason) for name in names}
    found = {
        "row_norm": _metric("row_norm", statistics.fmean(norms), n=len(norms)),
        "row_norm_spread": _metric("row_norm_spread", _spread(norms), n=len(norms)),
    }
    nulls = {"stable_rank": None, "router_cosine": None} if layer.width is None else {
        "stable_rank": _random_rank(layer.experts, layer.width),
        "router_cosine": _random_cosine(layer.width),
    }  # fmt: skip
    for name, value in (("stable_rank", layer.stable_rank), ("router_cosine", layer.cosine)):
        found[name] = (
            _absent(name, "fewer than two rows are finite, not zero and not masked")
            if value is None
            else _metric(name, value, nulls[name])
        )
    return found


def _bias_metrics(layer: LayerSums, before: LayerSums | None, past: Past) -> dict[str, Metric]:
    values = layer.selection_bias
    known = _known(values)
    if values is None or not known:
        return {}
    found = {"bias_spread": _metric("bias_spread", max(known) - min(known), n=len(known))}
    old = None if before is None else before.selection_bias
    pairs = [
        (a, b) for a, b in zip(values, old or (), strict=False) if a is not None and b is not None
    ]
    found["bias_drift"] = (
        _metric("bias_drift", statistics.fmean(abs(a - b) for a, b in pairs), n=len(pairs))
        if pairs
        else _absent("bias_drift", FIRST if past.is_first else NO_BIAS)
    )
    return found


def _expert_metrics(layer: LayerSums, first: LayerSums | None, past: Past) -> dict[str, Metric]:
    names = (
        "expert_norm", "expert_norm_spread", "expert_norm_top", "expert_distance", "expert_drift",
    )  # fmt: skip
    norms = _known(layer.expert_norms)
    if not norms or not any(norms):
        reasons = [layer.reasons.get(key) for key in ("experts", "expert values")]
        default = "every expert's weights are zero" if norms else "no expert has finite weights"
        reason = QUICK if past.now.sums.quick else next((r for r in reasons if r), default)
        return {name: _absent(name, reason) for name in names}
    middle = statistics.median(norms)
    found = {
        "expert_norm": _metric("expert_norm", statistics.fmean(norms), n=len(norms)),
        "expert_norm_spread": _metric("expert_norm_spread", _spread(norms), n=len(norms)),
        "expert_norm_top": _metric("expert_norm_top", max(norms) / middle, n=len(norms))
        if middle > 0.0
        else _absent("expert_norm_top", "the median expert is zero"),
    }
    if layer.sketches is None:
        reason = layer.reasons.get("expert values", "an expert's weights are missing or not finite")
        return {**found, **{name: _absent(name, reason) for name in names[3:]}}
    count = len(norms)
    found["expert_distance"] = (
        _metric("expert_distance", layer.expert_distance, 1.0, count * (count - 1) // 2)
        if layer.expert_distance is not None
        else _absent("expert_distance", "there are not two experts")
    )
    found["expert_drift"] = _drift(unpack(layer.sketches), first, past)
    return found


def _drift(sketches_ED: np.ndarray, first: LayerSums | None, past: Past) -> Metric:
    name = "expert_drift"
    if first is None:
        return _absent(name, FIRST if past.is_first else NO_ROUTER)
    if first.sketches is None:
        return _absent(name, "the first checkpoint's experts were not read, or are not finite")
    old_ED, norms = unpack(first.sketches), first.expert_norms or ()
    if old_ED.shape != sketches_ED.shape:
        return _absent(name, "the first checkpoint has another number of experts")
    scale_E = np.array([n or 0.0 for n in norms])
    nonzero_E = scale_E > 0.0
    if not nonzero_E.any():
        return _absent(name, "the first checkpoint's experts are zero")
    far_E = np.linalg.norm(sketches_ED - old_ED, axis=1)
    return _metric(
        name, float((far_E[nonzero_E] / scale_E[nonzero_E]).mean()), n=int(nonzero_E.sum())
    )


def _own_row(layer: LayerSums, *, quick: bool) -> Metric:
    coupling = layer.statistics.get(COUPLING)
    if coupling is None:
        reason = QUICK if quick else layer.reasons.get("experts", "the router could not be read")
        return _absent("own_row", reason)
    largest = [None if e in layer.masked else row for e, row in enumerate(coupling["largest"])]
    share = own_row_share(largest)
    if share is None:
        return _absent("own_row", "the shapes of its matrices do not show which side is the input")
    known = sum(row is not None for row in largest)
    return _metric("own_row", share, 1.0 / layer.experts, known)


def _moved(past: Past) -> dict[str, Metric]:
    names = ("routers_moved", "experts_moved", "others_moved")
    if past.is_first:
        return {name: _absent(name, FIRST) for name in names}
    tracks = past.history.tracks
    comparable = [
        item
        for item, track in tracks.items()
        if track.digests[past.place] is not None and track.digests[past.place - 1] is not None
    ]
    sizes = {name: size for name, (_, size, _) in past.now.sums.rest.items()}
    found = {}
    for name, kind in zip(names, ("router", "expert", "other"), strict=True):
        weights = {
            item: sizes[str(item[1])] if kind == "other" else 1
            for item in comparable
            if item[0] == kind
        }
        total = sum(weights.values())
        if not total:
            reason = QUICK if kind == "expert" and past.now.sums.quick else "nothing to compare"
            found[name] = _absent(name, reason)
            continue
        share = sum(size for item, size in weights.items() if item in past.moved) / total
        found[name] = _metric(name, share, n=total)
    return found


def _layer_at(layer: LayerSums, past: Past, place: int) -> LayerSums | None:
    """The same layer at an earlier checkpoint; None if there is none."""
    if place < 0 or place >= past.place:
        return None
    others = past.history.entries[place].sums.layers
    return next((x for x in others if x.router == layer.router), None)


@functools.cache
def _random_rank(rows: int, width: int) -> float:
    """Mean stable rank of random Gaussian matrices, over fewer draws if they are large."""
    generator = np.random.default_rng(0)
    draws = max(1, min(NULL_DRAWS, NULL_ENTRIES // max(1, rows * width)))
    found = []
    for _ in range(draws):
        matrix = generator.standard_normal((rows, width), dtype=np.float32).astype(np.float64)
        gram = matrix @ matrix.T if rows <= width else matrix.T @ matrix
        found.append(np.trace(gram) / np.linalg.eigvalsh(gram)[-1])
    return float(np.mean(found))


def _random_cosine(width: int) -> float:
    return math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def _known(values: Iterable[float | None] | None) -> list[float]:
    return [v for v in values or () if v is not None]


def _spread(values: Sequence[float]) -> float:
    middle = statistics.fmean(values)
    return float(np.std(values)) / middle if middle > 0.0 else 0.0


def _metric(name: str, value: float, null: float | None = None, n: int | None = None) -> Metric:
    spec = specs()[name]
    return Metric(value, None, None, n, spec.unit, spec.higher_is_better, null)


def _absent(name: str, reason: str | None) -> Metric:
    spec = specs()[name]
    return Metric(None, None, None, 0, spec.unit, spec.higher_is_better, None, reason)
