"""Rules over the result of `moegeo experts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moegeo_cli.commands.experts.record import ExpertLayerRecord, ExpertRecord, ExpertsRecord
from moegeo_cli.records import Evidence, Metric, layer_name
from moegeo_cli.verdict.rules import Found, Outcome, Skipped, lower_bound, uncalibrated_severity
from moegeo_cli.verdict.thresholds import Thresholds

SHOWN_PAIRS = 4
MAX_EVIDENCE = 16  # if all experts began as copies, every pair is similar


def redundant_experts(record: ExpertsRecord, limits: Thresholds) -> Outcome:
    """Experts that compute nearly the same as another expert of their layer.

    A pair counts if the lower end of the interval of its alignment lies above the limit and above
    the alignment that a pair of the layer reaches by chance.
    """
    limit = limits["redundant-experts"]
    measured = [layer for layer in record.layers if layer.null_limit is not None]
    similar = [
        (layer, expert)
        for layer in measured
        for expert in layer.expert
        if lower_bound(expert.nearest_alignment) > max(limit.value, layer.null_limit or 0.0)
    ]
    if not similar:
        found = record.coverage.routers_found
        if len(measured) == found:
            return None
        words = f"experts were measured as functions in {len(measured)} of {found} layers"
        return Skipped(f"{words}: none compute nearly the same" if measured else words)
    pairs = _pairs(similar)
    shown = [
        f"layer {layer_name(layer.layer, layer.router)}: {a} + {b} ({number.value:.3f})"
        for (layer, a, b), number in pairs[:SHOWN_PAIRS]
    ]
    more = f"; and {len(pairs) - SHOWN_PAIRS} more pairs" if len(pairs) > SHOWN_PAIRS else ""
    total = sum(layer.experts for layer in measured)
    return Found(
        uncalibrated_severity(limit),
        f"{len(similar)} of {total} experts compute nearly the same as another expert of their "
        f"layer (cosine of Jacobians): {'; '.join(shown)}{more}",
        tuple(layer.layer for layer, _ in similar),
        tuple(
            Evidence("nearest_alignment", number, layer.layer, layer.router)
            for (layer, _, _), number in pairs[:MAX_EVIDENCE]
        ),
        limit.threshold,
    )


Place = tuple[ExpertLayerRecord, int, int]


def _pairs(similar: list[tuple[ExpertLayerRecord, ExpertRecord]]) -> list[tuple[Place, Metric]]:
    """Each expert and its nearest expert as a pair, listed once, most similar first."""
    found: dict[tuple[str, int, int], tuple[Place, Metric]] = {}
    for layer, expert in similar:
        assert expert.nearest is not None
        assert expert.nearest_alignment is not None
        a, b = sorted((expert.expert, expert.nearest))
        found.setdefault((layer.router, a, b), ((layer, a, b), expert.nearest_alignment))
    return sorted(found.values(), key=lambda pair: -lower_bound(pair[1]))


# By the name of the finding.
RULES: Mapping[str, Callable[[ExpertsRecord, Thresholds], Outcome]] = {
    "redundant-experts": redundant_experts,
}
