"""Rules about what `moegeo experts` measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moegeo_cli.commands.experts.record import ExpertLayerRecord, ExpertRecord, ExpertsRecord
from moegeo_cli.records import Evidence, Metric, layer_name
from moegeo_cli.verdict.rules import Found, Outcome, Skipped, lower_bound, uncalibrated_severity
from moegeo_cli.verdict.thresholds import Thresholds

SHOWN_PAIRS = 4
MOST_EVIDENCE = 16  # of a model whose experts began as copies all pairs are alike


def redundant_experts(record: ExpertsRecord, limits: Thresholds) -> Outcome:
    """Experts that compute nearly what another one of their layer computes.

    A pair counts where the lower end of its alignment lies above the limit, and above what one of
    the layer's pairs reaches by chance.
    """
    limit = limits["redundant-experts"]
    told = [layer for layer in record.layers if layer.null_limit is not None]
    twins = [
        (layer, expert)
        for layer in told
        for expert in layer.expert
        if lower_bound(expert.nearest_alignment) > max(limit.value, layer.null_limit or 0.0)
    ]
    if not twins:
        found = record.coverage.routers_found
        if len(told) == found:
            return None
        words = f"experts were measured as functions in {len(told)} of {found} layers"
        return Skipped(f"{words}: none compute nearly the same" if told else words)
    pairs = _pairs(twins)
    shown = [
        f"layer {layer_name(layer.layer, layer.router)}: {a} + {b} ({number.value:.3f})"
        for (layer, a, b), number in pairs[:SHOWN_PAIRS]
    ]
    more = f"; and {len(pairs) - SHOWN_PAIRS} more pairs" if len(pairs) > SHOWN_PAIRS else ""
    among = sum(layer.experts for layer in told)
    return Found(
        uncalibrated_severity(limit),
        f"{len(twins)} of {among} experts compute nearly the same as another expert of their layer "
        f"(cosine of Jacobians): {'; '.join(shown)}{more}",
        tuple(layer.layer for layer, _ in twins),
        tuple(
            Evidence("nearest_alignment", number, layer.layer, layer.router)
            for (layer, _, _), number in pairs[:MOST_EVIDENCE]
        ),
        limit.threshold,
    )


Place = tuple[ExpertLayerRecord, int, int]


def _pairs(twins: list[tuple[ExpertLayerRecord, ExpertRecord]]) -> list[tuple[Place, Metric]]:
    """Each expert with its nearest one and their alignment, a pair once, the most alike first."""
    found: dict[tuple[str, int, int], tuple[Place, Metric]] = {}
    for layer, expert in twins:
        assert expert.nearest is not None
        assert expert.nearest_alignment is not None
        a, b = sorted((expert.expert, expert.nearest))
        found.setdefault((layer.router, a, b), ((layer, a, b), expert.nearest_alignment))
    return sorted(found.values(), key=lambda pair: -lower_bound(pair[1]))


# By the name of the finding.
RULES: Mapping[str, Callable[[ExpertsRecord, Thresholds], Outcome]] = {
    "redundant-experts": redundant_experts,
}
