"""Rules over the result of `moegeo routing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moegeo_cli.commands.routing.record import RoutingLayerRecord, RoutingRecord
from moegeo_cli.records import Evidence
from moegeo_cli.verdict.rules import (
    Found,
    Outcome,
    Skipped,
    layer_words,
    lower_bound,
    uncalibrated_severity,
)
from moegeo_cli.verdict.thresholds import Thresholds


def shared_direction(record: RoutingRecord, limits: Thresholds) -> Outcome:
    """A direction shared by all inputs that decides the logits.

    It adds the same to the logits of every token and so favours the same experts; balancing would
    suppress it. The rule holds if the router responds to it more than to a random direction and
    the logits have a large constant share: both intervals must lie above their limits.
    """
    gain, share = limits["shared-direction"], limits["shared-direction-share"]
    measured = [x for x in record.layers if _known(x, "response_relative", "constant_share")]
    found = [
        x
        for x in measured
        if lower_bound(x.metrics["response_relative"]) > gain.value
        and lower_bound(x.metrics["constant_share"]) > share.value
    ]
    if not found:
        return _nothing(record, len(measured), "measured for a shared direction")
    top = max(found, key=lambda x: x.metrics["constant_share"].value or 0.0)
    layers = tuple(x.layer for x in found)
    return Found(
        uncalibrated_severity(share),
        f"in {layer_words(layers)} a direction that all inputs share is not suppressed: in layer "
        f"{top.layer}, {_value(top, 'constant_share'):.0%} of the logits' energy is the same for "
        "every token, and the router responds to this direction "
        f"{_value(top, 'response_relative'):.2f} times as strongly as to a random one",
        layers,
        _evidence(found, ("constant_share", "response_relative")),
        share.threshold,
    )


def routing_ignores_input(record: RoutingRecord, limits: Thresholds) -> Outcome:
    """Unrelated tokens get nearly the same experts.

    The overlap is measured from its value for evenly used experts. The rule holds if its whole
    interval lies above the limit.
    """
    limit = limits["routing-ignores-input"]
    measured = [x for x in record.layers if _excess_overlap(x) is not None]
    found = [x for x in measured if (_excess_overlap(x) or 0.0) > limit.value]
    if not found:
        return _nothing(record, len(measured), "measured with unrelated tokens")
    top = max(found, key=lambda x: _excess_overlap(x) or 0.0)
    metric = top.metrics["overlap_unrelated"]
    layers = tuple(x.layer for x in found)
    return Found(
        uncalibrated_severity(limit),
        f"{layer_words(layers)} choose{'s' if len(layers) == 1 else ''} nearly the same experts "
        f"whatever the input: in layer {top.layer}, unrelated tokens have {metric.value:.0%} of "
        f"their experts in common, {metric.null_value:.0%} if all were used evenly",
        layers,
        _evidence(found, ("overlap_unrelated",)),
        limit.threshold,
    )


def _excess_overlap(layer: RoutingLayerRecord) -> float | None:
    """Low end of the overlap of unrelated tokens, rescaled: 0 for even use, 1 for equal experts.

    None if it was not measured, or if every token uses every expert.
    """
    metric = layer.metrics.get("overlap_unrelated")
    if metric is None or metric.value is None or metric.null_value is None:
        return None
    if metric.null_value >= 1.0 - 1e-9:
        return None
    return (lower_bound(metric) - metric.null_value) / (1.0 - metric.null_value)


def _nothing(record: RoutingRecord, measured: int, words: str) -> Outcome:
    """The outcome if nothing was found: passed if every router was measured, else skipped."""
    found = record.coverage.routers_found
    return None if measured == found else Skipped(f"{measured} of {found} routers were {words}")


def _known(layer: RoutingLayerRecord, *names: str) -> bool:
    metrics = [layer.metrics.get(name) for name in names]
    return all(m is not None and m.value is not None for m in metrics)


def _value(layer: RoutingLayerRecord, name: str) -> float:
    return layer.metrics[name].value or 0.0


def _evidence(layers: list[RoutingLayerRecord], names: tuple[str, ...]) -> tuple[Evidence, ...]:
    return tuple(Evidence(n, x.metrics[n], x.layer, x.router) for x in layers for n in names)


# By the name of the finding.
RULES: Mapping[str, Callable[[RoutingRecord, Thresholds], Outcome]] = {
    "shared-direction": shared_direction,
    "routing-ignores-input": routing_ignores_input,
}
