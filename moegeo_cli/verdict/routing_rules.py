"""Rules about single routers: their choices, their logits and damaged weights."""

from __future__ import annotations

from moegeo_cli.records import Metric, Threshold
from moegeo_cli.verdict.rules import (
    Found,
    Outcome,
    Situation,
    Skipped,
    evidence,
    known,
    layer_words,
    lower_bound,
    uncalibrated_severity,
)


def router_locked(situation: Situation) -> Outcome:
    """Sharp and balanced routing early in training: info, as no failure followed in the study."""
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
        if lower_bound(known(x, "fsi")) >= sharp.value
        and _upper_bound(known(x, "collapse")) <= level
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
    """A router whose p and combine weights do not depend on the token."""
    limit = situation.limits["router-uniform"]
    found = [
        x
        for x in situation.now.layers
        if x.state == "ok"
        and _upper_bound(known(x, "information")) <= limit.value
        and _upper_bound(known(x, "information_dispatch")) <= limit.value
    ]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    names = ("information", "information_dispatch")
    return Found(
        "watch",
        f"routing in {layer_words(layers)} hardly depends on the token: its information is at most "
        f"{limit.value:.0%} of ln E",
        layers,
        tuple(evidence(name, x) for x in found for name in names),
        limit.threshold,
    )


def logit_explosion(situation: Situation) -> Outcome:
    """Router logits that are too large."""
    return _above(situation, "logit-explosion", "logit_max", "the largest router logit")


def near_ties(situation: Situation) -> Outcome:
    """Many choices that rounding would change, compared with normal logits of the same E and K.

    Info, as no failure was found behind it; a watch with a limit that the user set.
    """
    limit, factor = situation.limits["near-ties"], situation.limits["near-ties-factor"]
    layers = [x for x in situation.now.layers if known(x, "near_ties")]
    if not layers:
        return Skipped("not measured")
    found = []
    for layer in layers:
        expected = layer.metrics["near_ties"].null_value
        bound = limit.value if limit.own else max(limit.value, factor.value * (expected or 0.0))
        if lower_bound(known(layer, "near_ties")) > bound:
            found.append(layer)
    if not found:
        return None
    top = max(found, key=lambda x: x.metrics["near_ties"].value or 0.0)
    metric, centred = top.metrics["near_ties"], known(top, "near_ties_centred")
    words = f"{metric.value:.1%} of the tokens of layer {top.layer} are near-ties"
    if metric.null_value is not None:
        words += (
            f"; for normal logits with {top.choices} experts and top {top.top_k} it would be "
            f"{metric.null_value:.1%}"
        )
    if centred is not None:
        words += f". Without each token's mean logit it is {centred.value:.1%}"
    return Found(
        uncalibrated_severity(limit),
        words,
        tuple(x.layer for x in found),
        tuple(evidence("near_ties", x) for x in found),
        limit.threshold,
    )


def router_nonfinite(situation: Situation) -> Outcome:
    """NaN or infinity in a router's weights or logits."""
    return _state(situation, "nonfinite", "has NaN or infinite weights or logits")


def router_zero(situation: Situation) -> Outcome:
    """A router with zero rows."""
    whole = _state(situation, "zero", "is all zeros")
    if whole is not None:
        return whole
    found = [x for x in situation.now.layers if x.zero_rows]
    if not found:
        return None
    words = "; ".join(f"{_experts(x.zero_rows)} in layer {x.layer}" for x in found[:3])
    return Found(
        "failing",
        f"router rows are zero: {words}{_and_more(len(found) - 3)}",
        tuple(x.layer for x in found),
        (),
        Threshold(None, "exact"),
    )


def experts_damaged(situation: Situation) -> Outcome:
    """Experts with weights that are not finite or all zero. Experts that are off may be zero."""
    looked = [x for x in situation.now.layers if x.experts_nonfinite is not None]
    if not looked:
        return Skipped("the experts' weights were not looked at")
    broken = [(x, x.experts_nonfinite, "NaN or infinite") for x in looked if x.experts_nonfinite]
    zeros = [(x, tuple(e for e in x.experts_zero or () if e not in x.off)) for x in looked]
    empty = [(x, held, "zeros") for x, held in zeros if held]
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


def experts_masked(situation: Situation) -> Outcome:
    """Experts that a row or a bias should switch off, but that tokens reach."""
    found = [
        (x, tuple(e for e in x.masked if e not in x.off)) for x in situation.now.layers if x.masked
    ]
    found = [(x, held) for x, held in found if held]
    if not found:
        return None
    shares = [sum((x.load or ())[e] or 0.0 for e in held) for x, held in found]
    words = "; ".join(
        f"{_experts(held)} in layer {x.layer} take {share:.1%} of the load"
        for (x, held), share in zip(found[:3], shares, strict=False)
    )
    return Found(
        "watch",
        f"tokens reach experts that a router's row or bias switches off: {words}"
        f"{_and_more(len(found) - 3)}. A long row lowers an expert's logit for some inputs and "
        "raises it for others; a bias of minus infinity switches the expert off for all inputs",
        tuple(x.layer for x, _ in found),
        (),
        Threshold(None, "exact"),
    )


def _experts(places: tuple[int, ...]) -> str:
    shown = ", ".join(str(e) for e in places[:4])
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return f"expert{'s' if len(places) > 1 else ''} {shown}{more}"


def _and_more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""


def _above(situation: Situation, name: str, metric: str, words: str) -> Outcome:
    """A watch for routers whose whole interval is above a limit."""
    limit = situation.limits[name]
    layers = [x for x in situation.now.layers if known(x, metric)]
    if not layers:
        return Skipped("not measured")
    found = [x for x in layers if lower_bound(known(x, metric)) > limit.value]
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


def _upper_bound(metric: Metric | None) -> float:
    if metric is None or metric.value is None:
        return float("inf")
    return metric.value if metric.ci_high is None else metric.ci_high
