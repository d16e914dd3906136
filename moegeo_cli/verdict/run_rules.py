"""Rules about heterogeneity of the Fisher, and about how complete the measurement is."""

from __future__ import annotations

import itertools

from moegeo_cli.records import Evidence, Metric
from moegeo_cli.verdict.rules import MIN_SEQUENCES, Found, Outcome, Situation, Skipped


def heterogeneity_above_init(situation: Situation) -> Outcome:
    """[GM]'s alarm: FHS above 1, here with its whole interval."""
    limit = situation.limits["heterogeneity-above-init"]
    metric = situation.now.metrics.get("fhs")
    if metric is None or metric.value is None:
        return Skipped((metric.reason if metric else None) or "not measured")
    if metric.ci_low is None:
        return Skipped("FHS has no interval")
    if metric.ci_low <= limit.value:
        return None
    return Found(
        "info",
        f"FHS is {_text(metric.value)} [{_text(metric.ci_low)}, {_text(metric.ci_high)}], above "
        f"{limit.value:g}",
        (),
        (Evidence("fhs", metric),),
        limit.threshold,
    )


def heterogeneity_rising(situation: Situation) -> Outcome:
    """The trace form of heterogeneity, which has no scale, rose at each of the last checkpoints."""
    limit = situation.limits["heterogeneity-rising"]
    count = max(3, int(limit.value))
    recent = situation.history[-count:]
    metrics = [c.metrics.get("heterogeneity_trace") for c in recent]
    if len(recent) < count:
        return Skipped(f"needs {count} checkpoints")
    values = [m.value for m in metrics if m is not None and m.value is not None]
    if len(values) < count:
        return Skipped("not measured at every checkpoint")
    if not all(b > a for a, b in itertools.pairwise(values)):
        return None
    return Found(
        "info",
        f"the trace form of heterogeneity rose from {values[0]:.3g} to {values[-1]:.3g} over "
        f"{count} checkpoints",
        (),
        tuple(Evidence("heterogeneity_trace", m) for m in metrics if m is not None),
        limit.threshold,
    )


def coverage_incomplete(situation: Situation) -> Outcome:
    """Routers that were not measured."""
    coverage = situation.now.coverage
    missing = coverage.routers_found - coverage.routers_measured
    if not missing:
        return None
    names = [f"{path} ({why})" for path, why in list(coverage.not_measured.items())[:3]]
    return Found(
        "watch",
        f"{coverage.routers_measured} of {coverage.routers_found} routers were measured: "
        f"{'; '.join(names)}{' …' if len(coverage.not_measured) > 3 else ''}",
        (),
        (Evidence("coverage", Metric(coverage.routers_measured / coverage.routers_found)),),
    )


def sample_too_small(situation: Situation) -> Outcome:
    """Too few sequences for intervals, or too few tokens for the dead-expert test."""
    sequences = situation.run.probe.get("sequences")
    if isinstance(sequences, int) and sequences < MIN_SEQUENCES:
        return Found(
            "info",
            f"the probe has {sequences} sequences; intervals need at least {MIN_SEQUENCES}",
            (),
            (Evidence("sequences", Metric(float(sequences))),),
        )
    untested = [
        (x, metric)
        for x in situation.now.layers
        if (metric := x.metrics.get("dead_experts")) is not None and metric.lacks_power
    ]
    if not untested:
        return None
    return Found(
        "info",
        f"the dead-expert test has no power: {untested[0][1].reason}",
        tuple(x.layer for x, _ in untested),
        tuple(Evidence("dead_experts", metric, x.layer, x.router) for x, metric in untested[:4]),
    )


def _text(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
