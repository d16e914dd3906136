"""Rules about the routers and experts of a single checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moegeo_cli.commands.check.history import Past
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.movement_rules import EXACT, NOT_READ
from moegeo_cli.commands.check.words import SHOWN_LAYERS, by_layer, layers_words, numbers, place
from moegeo_cli.records import Evidence, Metric
from moegeo_cli.verdict.rules import Found, Outcome, Skipped

SHOWN_GROUPS = 4


def router_nonfinite(past: Past) -> Outcome:
    """Routers with NaN or infinity in a row or a bias."""
    return _rows(past, lambda x: x.router_nonfinite, "NaN or infinity in rows or biases of routers")


def router_zero(past: Past) -> Outcome:
    """Router rows of zeros whose expert is not masked by a bias."""
    if not any(x.row_norms for x in past.layers):
        return Skipped("no router's values could be read")
    return _rows(
        past,
        lambda x: tuple(e for e in x.zero_rows if e not in x.masked),
        "router rows of zeros",
    )


def experts_damaged(past: Past) -> Outcome:
    """Experts with NaN, infinity or zero matrices. Masked experts may be zero."""
    if not any(x.expert_digests for x in past.layers):
        return NOT_READ
    broken = {x.router: x.expert_nonfinite for x in past.layers if x.expert_nonfinite}
    empty = {
        x.router: zero
        for x in past.layers
        if (zero := tuple(e for e in x.expert_zero if e not in x.masked))
    }
    if not broken and not empty:
        return None
    words = []
    if broken:
        words.append(f"weights of {by_layer(broken, past.layers)} are NaN or infinite")
    if empty:
        words.append(f"weights of {by_layer(empty, past.layers)} are zeros")
    return Found(
        "failing" if broken else "watch",
        "; ".join(words),
        numbers(x for x in past.layers if x.router in {**broken, **empty}),
        (),
        EXACT,
    )


def experts_masked(past: Past) -> Outcome:
    """Experts that a row or a bias switches off."""
    found = [x for x in past.layers if x.masked]
    if not found:
        return None
    count = sum(len(x.masked) for x in found)
    return Found(
        "info",
        "switched off by a router's row or bias: "
        f"{by_layer({x.router: x.masked for x in found}, past.layers)}",
        numbers(found),
        (Evidence("experts_masked", Metric(float(count))),),
        EXACT,
    )


def experts_identical(past: Past) -> Outcome:
    """Experts of a layer with equal weights, bit for bit or up to rounding to bfloat16."""
    if not any(x.expert_digests for x in past.layers):
        return NOT_READ
    groups = {x.router: layer_groups for x in past.layers if (layer_groups := identical_groups(x))}
    if not groups:
        return None
    found = [x for x in past.layers if x.router in groups]
    shown = "; ".join(
        f"layer {place(x)}: "
        + ", ".join("=".join(map(str, group)) for group in groups[x.router][:SHOWN_GROUPS])
        + (", ..." if len(groups[x.router]) > SHOWN_GROUPS else "")
        for x in found[:SHOWN_LAYERS]
    )
    more = f"; and {len(found) - SHOWN_LAYERS} more layers" if len(found) > SHOWN_LAYERS else ""
    count = sum(len(group) for layer_groups in groups.values() for group in layer_groups)
    near = {x.router for x in found if x.expert_near}
    how = "bit for bit" if not near else "up to rounding to bfloat16"
    first = past.is_first and past.now.step in (0, None)
    why = (
        "an upcycled model starts this way"
        if first
        else "a save wrote some experts twice, or they are copies that never became different"
    )
    return Found(
        "info" if first else "watch",
        f"{count} of {sum(x.experts for x in past.layers)} experts have the same weights as "
        f"another expert of their layer, {how} ({shown}{more}): {why}",
        numbers(found),
        (Evidence("experts_identical", Metric(float(count))),),
        EXACT,
    )


def identical_groups(layer: LayerSums) -> list[tuple[int, ...]]:
    """Groups of experts with equal weights, without damaged experts (zeros, NaN)."""
    lost = {*layer.expert_zero, *layer.expert_nonfinite}
    by_digest: dict[str, list[int]] = {}
    for expert, digest in enumerate(layer.expert_digests or ()):
        if digest and expert not in lost:
            by_digest.setdefault(digest, []).append(expert)
    near = [group.experts for group in layer.expert_near]
    taken = {expert for group in near for expert in group}
    equal = [tuple(x) for x in by_digest.values() if len(x) > 1 and x[0] not in taken]
    return sorted([*near, *equal])


def router_no_gradient(past: Past) -> Outcome:
    """Routers with K = 1 and renormalised weights: the weight is always 1, the gradient 0."""
    renormalised = past.now.sums.facts.get("renormalised")
    if renormalised is None:
        return Skipped("config.json does not say whether combine weights are renormalised")
    found = [x for x in past.layers if x.top_k == 1] if renormalised else []
    if not found:
        return None
    return Found(
        "watch",
        f"the loss gives the router of {layers_words(found, past.layers)} no gradient at all: each "
        "token gets one expert, whose weight is divided by itself and so is always 1",
        numbers(found),
        (),
        EXACT,
    )


def _rows(past: Past, which: Callable[[LayerSums], Sequence[int]], words: str) -> Outcome:
    found = [x for x in past.layers if which(x)]
    if not found:
        return None
    experts = {x.router: which(x) for x in found if len(which(x)) < x.experts}
    whole = [x for x in found if x.router not in experts]
    places = [f"all experts of {layers_words(whole, past.layers)}"] if whole else []
    places += [by_layer(experts, past.layers)] if experts else []
    return Found("failing", f"{words}: {'; '.join(places)}", numbers(found), (), EXACT)
