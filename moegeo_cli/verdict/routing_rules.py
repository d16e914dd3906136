"""Rules about what routers do."""

from __future__ import annotations

from moegeo_cli.records import Evidence, LayerRecord, Metric, Threshold
from moegeo_cli.verdict.rules import (
    MIN_SEQUENCES,
    Found,
    Outcome,
    Situation,
    Skipped,
    evidence,
    known,
    layer_words,
    low,
)
from moegeo_cli.verdict.thresholds import collapse_limit, is_studied


def router_collapse(situation: Situation) -> Outcome:
    """Load imbalance beyond the limit, once the part that noise explains is taken off.

    Failing takes a whole interval over a calibrated limit, and that the study speaks for it: E and
    K that it had, or a load that is collapsed by the study's own definition; and not the start of
    training, where healthy runs collapse for a while.
    """
    limit = situation.limits["router-collapse"]
    found: list[tuple[float, bool, LayerRecord, float]] = []
    measured, sequences = 0, situation.run.probe.get("sequences")
    for layer in situation.now.layers:
        metric = known(layer, "collapse")
        if metric is None or layer.top_k is None:
            continue
        bound = collapse_limit(limit, layer.experts, layer.top_k)
        if bound >= 1.0:
            continue  # K experts a token cannot be that unequal
        measured += 1
        null = metric.null_value or 0.0
        assert metric.value is not None
        if metric.value - null < bound:
            continue
        # Few sequences resemble themselves: their interval is no proof.
        enough = sequences is None or sequences >= MIN_SEQUENCES
        sure = enough and metric.ci_low is not None and metric.ci_low - null >= bound
        sure = sure and limit.calibrated and _speaks_for(situation, layer)
        found.append((metric.value, sure, layer, bound))
    if not measured:
        return Skipped("no router has a collapse that could reach the limit", undecided=True)
    if not found:
        return None
    found.sort(key=lambda f: (-f[0], f[2].layer))
    value, _, first, bound = found[0]
    layers = tuple(sorted(f[2].layer for f in found))
    early = _is_early(situation)
    studied = is_studied(limit, first.experts, first.top_k or 1)
    return Found(
        "failing" if any(f[1] for f in found) and not early else "watch",
        f"collapse is {value:.2f} in layer {first.layer}, over the limit of {bound:.2f} for "
        f"{first.experts} experts of which {first.top_k} are chosen; {layer_words(layers)} "
        f"{'is' if len(layers) == 1 else 'are'} over it"
        f"{'' if studied else '; that limit is of the nearest E and K that were studied'}"
        f"{'; so early in training healthy runs are, too, for a while' if early else ''}",
        layers,
        tuple(evidence("collapse", f[2]) for f in found),
        Threshold(
            bound, limit.threshold.source, limit.threshold.precision, limit.threshold.recall,
            limit.threshold.false_positive_rate,
        ),
    )  # fmt: skip


def _speaks_for(situation: Situation, layer: LayerRecord) -> bool:
    """Whether the limit was studied at this E and K, or the load is collapsed by definition."""
    if is_studied(situation.limits["router-collapse"], layer.experts, layer.top_k or 1):
        return True
    definition = situation.limits["router-collapse-entropy"].value
    return _high(known(layer, "entropy_load_rescaled")) < definition


def _is_early(situation: Situation) -> bool:
    fraction = situation.now.progress.get("fraction")
    return fraction is not None and fraction < situation.limits["router-collapse-from"].value


def dead_experts(situation: Situation) -> Outcome:
    """Experts unused on this probe; those unused in every domain and before are named."""
    layers = [x for x in situation.now.layers if known(x, "dead_experts")]
    if not layers:
        metric = next((x.metrics.get("dead_experts") for x in situation.now.layers), None)
        return Skipped((metric.reason if metric else None) or "not measured")
    found = [x for x in layers if x.dead]
    if not found:
        return None
    count = sum(len(x.dead) for x in found)
    words = [f"{count} expert{'s' if count != 1 else ''} unused on this probe"]
    everywhere = sum(len(x.dead_in_all_domains or ()) for x in found)
    if everywhere:
        words.append(f"{everywhere} in every domain that can tell")
    if len(situation.history) > 1:
        before = {x.router: set(x.dead) for x in situation.history[-2].layers}
        lasting = sum(len(set(x.dead) & before.get(x.router, set())) for x in found)
        words.append(f"{lasting} of them at the checkpoint before as well")
    numbers = tuple(x.layer for x in found)
    named = ", ".join(
        f"layer {x.layer}: {', '.join(map(str, x.dead[:8]))}{'…' if len(x.dead) > 8 else ''}"
        for x in found[:4]
    )
    return Found(
        "watch",
        f"{'; '.join(words)} ({named})",
        numbers,
        tuple(evidence("dead_experts", x) for x in found),
        situation.limits["dead-experts"].threshold,
    )


def router_locked(situation: Situation) -> Outcome:
    """Sharp and balanced early in training: a fact, since the study found no failure behind it."""
    until = situation.limits["router-locked-until"].value
    fraction = situation.now.progress.get("fraction")
    if fraction is None:
        return Skipped("the planned length of training is not recorded")
    if fraction > until or fraction == 0:
        return Skipped(f"looks only at the first {until:.0%} of training")
    sharp = situation.limits["router-locked"]
    level = situation.limits["router-locked-collapse"].value
    found = [
        x
        for x in situation.now.layers
        if low(known(x, "fsi")) >= sharp.value and _high(known(x, "collapse")) <= level
    ]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    return Found(
        "info",
        f"FSI is over {sharp.value:g} with balanced load at {fraction:.0%} of training in "
        f"{layer_words(layers)}",
        layers,
        tuple(evidence("fsi", x) for x in found),
        sharp.threshold,
    )


def router_uniform(situation: Situation) -> Outcome:
    """Neither p nor the combine weights depend on the token."""
    limit = situation.limits["router-uniform"]
    found = [
        x
        for x in situation.now.layers
        if x.state == "ok"
        and _high(known(x, "information")) <= limit.value
        and _high(known(x, "information_dispatch")) <= limit.value
    ]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    names = ("information", "information_dispatch")
    return Found(
        "watch",
        f"routing in {layer_words(layers)} says nothing about the token: at most "
        f"{limit.value:.0%} of ln E",
        layers,
        tuple(evidence(name, x) for x in found for name in names),
        limit.threshold,
    )


def logit_explosion(situation: Situation) -> Outcome:
    """Logits too large."""
    return _above(situation, "logit-explosion", "logit_max", "the largest router logit")


def near_ties(situation: Situation) -> Outcome:
    """Choices that rounding would change."""
    return _above(situation, "near-ties", "near_ties", "the share of near-ties")


def router_nonfinite(situation: Situation) -> Outcome:
    """NaN or infinity."""
    return _state(situation, "nonfinite", "has NaN or infinite weights or logits")


def router_zero(situation: Situation) -> Outcome:
    """All rows zero, or some."""
    whole = _state(situation, "zero", "is all zeros")
    if whole is not None:
        return whole
    found = [x for x in situation.now.layers if x.zero_rows]
    if not found:
        return None
    words = "; ".join(f"{_experts(x.zero_rows)} in layer {x.layer}" for x in found[:3])
    return Found(
        "failing",
        f"rows of routers are zeros: of {words}{_and_more(len(found) - 3)}",
        tuple(x.layer for x in found),
        (),
        Threshold(None, "exact"),
    )


def experts_damaged(situation: Situation) -> Outcome:
    """Experts whose weights are not finite, or zeros."""
    looked = [x for x in situation.now.layers if x.experts_nonfinite is not None]
    if not looked:
        return Skipped("the experts' weights were not looked at")
    broken = [(x, x.experts_nonfinite, "NaN or infinite") for x in looked if x.experts_nonfinite]
    empty = [(x, x.experts_zero, "zeros") for x in looked if x.experts_zero]
    found = [*broken, *empty]
    if not found:
        return None
    words = "; ".join(
        f"{_experts(which or ())} in layer {x.layer} are {what}" for x, which, what in found[:3]
    )
    return Found(
        "failing" if broken else "watch",
        f"weights of {words}{_and_more(len(found) - 3)}",
        tuple(sorted({x.layer for x, _, _ in found})),
        (),
        Threshold(None, "exact"),
    )


def _experts(places: tuple[int, ...]) -> str:
    shown = ", ".join(str(e) for e in places[:4])
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return f"expert{'s' if len(places) > 1 else ''} {shown}{more}"


def _and_more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""


def balancing_inactive(situation: Situation) -> Outcome:
    """A balance loss that the config asks for and that will not be applied."""
    training = situation.run.run.get("training") or {}
    framework = situation.run.run.get("framework")
    asked = {
        key: training[key]
        for key in ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
        if isinstance(training.get(key), int | float) and training[key] > 0
    }
    if not asked:
        return Skipped("the config asks for no balance loss")
    key, value = next(iter(asked.items()))
    if framework == "nanotron":
        reason = f"{key} = {value:g}, which nanotron declares and never reads"
    elif framework in (None, "transformers", "trl", "axolotl"):
        if key != "router_aux_loss_coef" or training.get("output_router_logits") is True:
            return None
        reason = (
            f"{key} = {value:g} does nothing while output_router_logits is not true: "
            "transformers adds the balance loss only then"
        )
    else:
        return Skipped(f"{framework} has its own switch, which the checkpoint does not record")
    number = Evidence(key, Metric(float(value)))
    return Found(
        "watch", reason, (), (number,), Threshold(None, "transformers 5.23, by running it")
    )


def _above(situation: Situation, name: str, metric: str, words: str) -> Outcome:
    """Routers whose whole interval lies above a limit."""
    limit = situation.limits[name]
    layers = [x for x in situation.now.layers if known(x, metric)]
    if not layers:
        return Skipped("not measured")
    found = [x for x in layers if low(known(x, metric)) > limit.value]
    if not found:
        return None
    top = max(found, key=lambda x: x.metrics[metric].value or 0.0)
    value = top.metrics[metric].value
    layers_found = tuple(x.layer for x in found)
    return Found(
        "watch",
        f"{words} is {value:.3g} in layer {top.layer}, over {limit.value:g}",
        layers_found,
        tuple(evidence(metric, x) for x in found),
        limit.threshold,
    )


def _state(situation: Situation, state: str, words: str) -> Outcome:
    found = [x for x in situation.now.layers if x.state == state]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    which = f"the router of {layer_words(layers)}" if len(layers) == 1 else (
        f"each router of {layer_words(layers)}"
    )  # fmt: skip
    return Found("failing", f"{which} {words}", layers, (), Threshold(None, "exact"))


def _high(metric: Metric | None) -> float:
    if metric is None or metric.value is None:
        return float("inf")
    return metric.value if metric.ci_high is None else metric.ci_high
