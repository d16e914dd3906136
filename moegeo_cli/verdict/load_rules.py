"""Rules about a router's load: collapse and dead experts."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.records import CheckpointRecord, LayerRecord, Metric, Threshold, layer_name
from moegeo_cli.records.verdict import Severity
from moegeo_cli.verdict.known_loads import (
    BROAD_DOMAINS,
    MIXTURE,
    NARROW,
    LoadReading,
    limit_of,
    read_load,
    standing_words,
)
from moegeo_cli.verdict.rules import (
    MIN_SEQUENCES,
    SEVERITIES,
    Found,
    Outcome,
    Situation,
    Skipped,
    evidence,
    is_early,
    known,
    layer_words,
    lower_bound,
)
from moegeo_cli.verdict.thresholds import collapse_limit, is_studied

SOURCE = "published loads of deployed models (docs/results/verdicts.md#loads)"


@dataclass(frozen=True, slots=True)
class _Reading:
    """One router's load with its final severity, which its history may have lowered."""

    layer: LayerRecord
    load: LoadReading
    severity: Severity


def router_collapse(situation: Situation) -> Outcome:
    """A load that is more unequal than that of known-good models on the same kind of text.

    It is a watch if the whole interval is outside, the checkpoint before too, and training is not
    at its start. It is failing if the same K experts take nearly every token of a mixture of
    domains. A load over the limit of the evidence study is info. A user's own limit on `collapse`
    replaces all of this.
    """
    limit = situation.limits["router-collapse"]
    if limit.own or not limit.cells:
        return _over_own_limit(situation)
    readings = _read(situation)
    if not any(r.load.severity for r in readings):
        return Skipped("no router has a load that can be judged", undecided=True)
    unequal = [r for r in readings if r.severity != "info" or _over_study(situation, r.layer)]
    if not unequal:
        return None
    worst = max(unequal, key=lambda r: (SEVERITIES.index(r.severity), -(r.load.reach or 0.0)))
    own = [r for r in unequal if r.severity == worst.severity]
    effective = worst.layer.metrics["effective_experts"]
    assert effective.value is not None
    breadth = breadth_of(situation)
    place = ""
    if worst.load.standing is not None:
        place = f", {standing_words(worst.load.standing, breadth)}"
    layers = tuple(sorted({r.layer.layer for r in own}))
    return Found(
        worst.severity,
        f"{effective.value:.1f} of {worst.layer.choices} experts carry the load in layer "
        f"{_name(worst.layer)}{place}{_others(own, worst)}{_trend(situation, worst.layer)}"
        f"{_why_not_higher(situation, worst)}",
        layers,
        tuple(evidence(name, r.layer) for r in own for name in ("effective_experts", "collapse")),
        Threshold(limit_of(breadth), f"{SOURCE}: share of the way from K to E"),
    )


def breadth_of(situation: Situation) -> str:
    """The kind of text of the probe: a mixture if it has at least four domains, else narrow."""
    domains = situation.run.probe.get("domains") or {}
    return MIXTURE if len(domains) >= BROAD_DOMAINS else NARROW


def _read(situation: Situation) -> list[_Reading]:
    """Every router's load; an early or first occurrence lowers its severity."""
    before = {x.router: x for x in situation.history[-2].layers} if _has_past(situation) else {}
    found = []
    for layer in situation.now.layers:
        load = _load(situation, layer)
        severity: Severity = load.severity or "info"
        if severity != "info" and is_early(situation):
            severity = "info"
        if severity != "info" and layer.router in before:
            past = _load(situation, before[layer.router]).severity or "info"
            severity = min(severity, past, key=SEVERITIES.index)
        found.append(_Reading(layer, load, severity))
    return found


def _has_past(situation: Situation) -> bool:
    return len(situation.history) > 1


def _load(situation: Situation, layer: LayerRecord) -> LoadReading:
    metric = known(layer, "effective_experts")
    if metric is None or layer.top_k is None:
        return LoadReading(None, None, None, "not measured")
    assert metric.value is not None
    sequences = situation.run.probe.get("sequences")
    if sequences is not None and sequences < MIN_SEQUENCES:
        # With so few sequences neither the interval nor the null is reliable.
        return LoadReading(None, None, None, f"{sequences} sequences are too few")
    even = float(layer.choices) if metric.null_value is None else metric.null_value
    return read_load(
        metric.value, even, layer.choices, layer.top_k, breadth_of(situation), upper=metric.ci_high
    )


def _over_study(situation: Situation, layer: LayerRecord) -> bool:
    """Whether `collapse` minus its null is over the study's limit for this E and K."""
    metric = known(layer, "collapse")
    if metric is None or metric.value is None or layer.top_k is None:
        return False
    bound = collapse_limit(situation.limits["router-collapse"], layer.choices, layer.top_k)
    return bound < 1.0 and metric.value - (metric.null_value or 0.0) >= bound


def _over_own_limit(situation: Situation) -> Outcome:
    """The rule with the user's own limit on `collapse`."""
    limit = situation.limits["router-collapse"]
    measured = [x for x in situation.now.layers if known(x, "collapse") and x.top_k is not None]
    if not measured:
        return Skipped("no router has a collapse that could reach the limit", undecided=True)
    found = [x for x in measured if _excess(x.metrics["collapse"]) >= limit.value]
    if not found:
        return None
    sure = any(_excess(x.metrics["collapse"], lower=True) >= limit.value for x in found)
    top = max(found, key=lambda x: x.metrics["collapse"].value or 0.0)
    layers = tuple(x.layer for x in found)
    return Found(
        "failing" if sure and limit.calibrated and not is_early(situation) else "watch",
        f"collapse is {top.metrics['collapse'].value:.2f} in layer {_name(top)}, over the limit of "
        f"{limit.value:g} that is set; {layer_words(layers)} "
        f"{'is' if len(set(layers)) == 1 else 'are'} over it",
        layers,
        tuple(evidence("collapse", x) for x in found),
        limit.threshold,
    )


def _excess(metric: Metric, *, lower: bool = False) -> float:
    return (lower_bound(metric) if lower else metric.value or 0.0) - (metric.null_value or 0.0)


def _name(layer: LayerRecord) -> str:
    return layer_name(layer.layer, layer.router)


def _others(own: list[_Reading], worst: _Reading) -> str:
    more = sorted({r.layer.layer for r in own if r is not worst})
    return f"; likewise {layer_words(more)}" if more else ""


def _trend(situation: Situation, layer: LayerRecord) -> str:
    """The effective experts at the checkpoint before, for the message."""
    if not _has_past(situation):
        return ""
    before = _find(situation.history[-2], layer.router)
    past = None if before is None else known(before, "effective_experts")
    if past is None or past.value is None:
        return ""
    return f"; {past.value:.1f} at the checkpoint before"


def _find(checkpoint: CheckpointRecord, router: str) -> LayerRecord | None:
    return next((x for x in checkpoint.layers if x.router == router), None)


def _why_not_higher(situation: Situation, reading: _Reading) -> str:
    """Why the severity of an unequal load is not higher, for the message."""
    if reading.severity != "info" or reading.load.severity in (None, "info"):
        studied = is_studied(
            situation.limits["router-collapse"], reading.layer.choices, reading.layer.top_k or 1
        )
        comparable = reading.severity != "info" or studied
        return "" if comparable else "; the evidence study has no runs with this E and K"
    if is_early(situation):
        return "; this early in training healthy runs look the same"
    return "; only at this checkpoint so far"


def dead_experts(situation: Situation) -> Outcome:
    """Experts that no token uses: a watch if they are dead in every domain and twice in a row.

    Experts that are unused on one kind of text, or at one checkpoint, are ordinary (info).
    """
    layers = [x for x in situation.now.layers if known(x, "dead_experts")]
    if not layers:
        metric = next((x.metrics.get("dead_experts") for x in situation.now.layers), None)
        return Skipped((metric.reason if metric else None) or "not measured")
    found = [x for x in layers if x.dead]
    if not found:
        every = situation.now.layers
        maybe = sum(len(x.suspects) for x in every)
        if not maybe:
            return None
        total = sum(x.choices for x in every)
        return Skipped(
            f"{maybe} of {total} experts look unused; the probe has too few tokens to tell"
        )
    lasting = {x.router: _lasting(situation, x) for x in found}
    everywhere = [x for x in found if lasting[x.router]]
    count = sum(len(x.dead) for x in found)
    among = sum(x.choices for x in layers)
    words = f"{count} of {among} experts are unused on this probe"
    sure = sum(map(len, lasting.values()))
    broad = breadth_of(situation) == MIXTURE
    past = " and at the checkpoint before" if _has_past(situation) else ""
    words += f"; {sure} of them in every domain with enough tokens{past}"
    severity: Severity = "watch" if everywhere and broad and not is_early(situation) else "info"
    named = everywhere if severity == "watch" else found
    shown = ", ".join(
        f"layer {_name(x)}: {_numbers(lasting[x.router] if severity == 'watch' else x.dead)}"
        for x in named[:4]
    )
    why = "" if broad else "; the probe has too few domains to say more"
    return Found(
        severity,
        f"{words} ({shown}){why}",
        tuple(x.layer for x in named),
        tuple(evidence("dead_experts", x) for x in named),
        situation.limits["dead-experts"].threshold,
    )


def _lasting(situation: Situation, layer: LayerRecord) -> tuple[int, ...]:
    """Experts dead in every domain with enough tokens, and at the checkpoint before, if any."""
    everywhere = set(layer.dead_in_all_domains or ())
    if _has_past(situation):
        before = _find(situation.history[-2], layer.router)
        everywhere &= set(before.dead) if before is not None else set()
    return tuple(sorted(everywhere))


def _numbers(experts: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, experts[:8]))}{'…' if len(experts) > 8 else ''}"
