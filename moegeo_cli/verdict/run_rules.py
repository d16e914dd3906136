"""Rules about the Fisher scores, the loss, and the measurement itself."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

from moegeo_cli.records import NOT_FINITE, Evidence, Metric
from moegeo_cli.verdict.rules import MIN_SEQUENCES, Found, Outcome, Situation, Skipped, known

SPIKE_WINDOW = 10


def heterogeneity_above_init(situation: Situation) -> Outcome:
    """The paper's alarm, with its interval."""
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
    """The scale-free score rose at each of the last checkpoints."""
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


def loss_behind_reference(situation: Situation) -> Outcome:
    """The loss against the reference at the same progress: a watch over the limit, else a fact.

    A gap that is sure may still be one that runs close again, or that seeds of one setting show:
    the limit is what only few runs that ended well had.
    """
    if situation.losses is None:
        return Skipped("no --reference run was given")
    gap = situation.losses.get(situation.now.path)
    if gap is None or gap.value is None:
        return Skipped("the reference has no checkpoint at this progress, on the same probe")
    if gap.ci_low is None or gap.ci_high is None:
        return Skipped("the loss difference has no interval")
    limit = situation.limits["loss-behind-reference"]
    own = situation.now.loss.value
    reference = None if own is None else own - gap.value
    if reference is None or reference <= 0:
        return Skipped("the reference's loss is not above 0: a gap is no share of it")
    share = gap.value / reference
    if gap.ci_low <= 0:
        return None
    above = gap.ci_low / reference > limit.value
    return Found(
        "watch" if above else "info",
        f"the loss is {gap.value:+.3f} nats per token [{gap.ci_low:+.3f}, "
        f"{gap.ci_high:+.3f}] against the reference at the same progress, {share:+.1%} of it "
        f"({'over' if above else 'not surely over'} the limit of {limit.value:.1%})",
        (),
        (Evidence("loss_difference", gap),),
        limit.threshold,
    )


def loss_spike(situation: Situation) -> Outcome:
    """A jump in the training log up to this checkpoint."""
    limit = situation.limits["loss-spike"]
    step = situation.now.step
    log = [e for e in situation.run.run.get("log") or [] if _until(e, step)]
    broken = [e for e in log if "loss" in (e.get("nonfinite") or ())]
    if broken:
        return Found(
            "failing",
            f"the training loss is not finite at step {broken[0].get('step')}",
            (),
            (Evidence("loss_log", Metric(None, reason="NaN or infinite")),),
            limit.threshold,
        )
    if situation.now.loss.value is None and situation.now.loss.reason == NOT_FINITE:
        return Found(
            "failing",
            "the loss on the probe is not finite",
            (),
            (Evidence("loss", situation.now.loss),),
            limit.threshold,
        )
    losses = [
        (e.get("step"), float(e["loss"])) for e in log if isinstance(e.get("loss"), int | float)
    ]
    if len(losses) < SPIKE_WINDOW + 1:
        return Skipped(f"the log has fewer than {SPIKE_WINDOW + 1} losses up to here")
    worst_rise, place = 0.0, None
    for i in range(SPIKE_WINDOW, len(losses)):
        before = statistics.median(v for _, v in losses[i - SPIKE_WINDOW : i])
        rise = losses[i][1] / before - 1.0 if before > 0 else 0.0
        if rise > worst_rise:
            worst_rise, place = rise, losses[i][0]
    if worst_rise <= limit.value:
        return None
    return Found(
        "watch",
        f"the training loss jumped by {worst_rise:.0%} over the median of the {SPIKE_WINDOW} "
        f"entries before, at step {place}",
        (),
        (Evidence("loss_rise", Metric(worst_rise)),),
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
            f"the probe has {sequences} sequences; intervals want at least {MIN_SEQUENCES}",
            (),
            (Evidence("sequences", Metric(float(sequences))),),
        )
    untold = [
        x
        for x in situation.now.layers
        if known(x, "dead_experts") is None and "cannot tell" in _reason(x.metrics)
    ]
    if not untold:
        return None
    return Found(
        "info",
        f"the dead-expert test has no power: {_reason(untold[0].metrics)}",
        tuple(x.layer for x in untold),
        tuple(Evidence("dead_experts", x.metrics["dead_experts"], x.layer, x.router)
              for x in untold[:4]),
    )  # fmt: skip


def _reason(metrics: Mapping[str, Metric]) -> str:
    metric = metrics.get("dead_experts")
    return (metric.reason or "") if metric is not None else ""


def _until(entry: Mapping[str, Any], step: int | None) -> bool:
    own = entry.get("step")
    return step is None or not isinstance(own, int | float) or own <= step


def _text(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
