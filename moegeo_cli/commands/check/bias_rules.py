"""Rules about selection biases: not saved, not updated, stored too coarsely."""

from __future__ import annotations

from moegeo_cli.commands.check.history import Past
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.movement_rules import EXACT
from moegeo_cli.commands.check.words import layers_words, numbers, place
from moegeo_cli.records import Evidence, Metric
from moegeo_cli.verdict.rules import Found, Outcome, Skipped, uncalibrated_severity

NONE = Skipped("no router has a selection bias")


def bias_unused(past: Past) -> Outcome:
    """Selection biases that are the same for every expert, or stay while other layers' move."""
    told = [x for x in past.layers if _known(x)]
    if not told:
        return NONE
    if past.now.step == 0 or (past.now.step is None and past.now.sums.fresh is not False):
        return Skipped("a selection bias starts equal")
    equal = [x for x in told if spread(x) == 0.0]
    held = [x for x in told if x not in equal and past.since(("bias", x.router)) is not None]
    others_move = any(thing[0] == "bias" for thing in past.moved)
    if not equal and not (held and others_move):
        return None if not held or not past.moved else _kept(past, held, told)
    words = []
    if equal:
        values = {x.selection_bias[0] for x in equal if x.selection_bias}
        value = f"{values.pop():g}" if len(values) == 1 else "constant"
        words.append(
            f"the selection bias of {layers_words(equal, told)} is {value} for all experts"
        )
    if held and others_move:
        since = past.since(("bias", held[-1].router))
        assert since is not None
        words.append(
            f"that of {layers_words(held, told)} is equal bit for bit since {since.name}, while "
            "other layers' move"
        )
    found = [*equal, *(held if others_move else ())]
    return Found(
        "watch",
        f"{' and '.join(words)}: it is not saved, or nothing updates it",
        numbers(found),
        tuple(Evidence("bias_spread", Metric(spread(x)), x.layer, x.router) for x in found[:4]),
        EXACT,
    )


def _kept(past: Past, held: list[LayerSums], told: list[LayerSums]) -> Found:
    """Whether the training left all biases unchanged, which is usual after pretraining."""
    since = past.since(("bias", held[-1].router))
    assert since is not None
    return Found(
        "info",
        f"the selection bias of {layers_words(held, told)} is equal bit for bit since "
        f"{since.name}, while other weights move: nothing updates it",
        numbers(held),
        (),
        EXACT,
    )


def bias_rounded(past: Past) -> Outcome:
    """Selection biases stored so coarsely that rounding changes choices of Gaussian inputs."""
    told = [x for x in past.layers if _known(x)]
    if not told:
        return NONE
    limit = past.limits["bias-rounded"]
    found = [x for x in told if _lost(x) > limit.value]
    if not found:
        return None
    worst = max(found, key=_lost)
    about = worst.rounding
    assert about is not None
    gap = "" if about["gap"] is None else f" beside a gap of {about['gap']:.2g} at the boundary"
    changes = (
        f"{about['changes']:.0%} of Gaussian inputs choose other experts because of it"
        if about["changes"] is not None
        else "how many tokens get other experts is not known"
    )
    return Found(
        uncalibrated_severity(limit),
        f"the selection bias of {layers_words(found, told)} is stored coarsely: layer "
        f"{place(worst)} has {about['distinct']} distinct values for {worst.experts} experts in "
        f"{about['precision']}, steps of {about['step']:.2g}{gap}; {changes}",
        numbers(found),
        tuple(
            Evidence("bias_changes", Metric(x.rounding["changes"]), x.layer, x.router)
            for x in found[:4]
            if x.rounding is not None and x.rounding["changes"] is not None
        ),
        limit.threshold,
    )


def _lost(layer: LayerSums) -> float:
    """Share of choices that rounding changes.

    If it is not known: 1 with few distinct values, else 0.
    """
    about = layer.rounding
    if about is None:
        return 0.0
    if about["changes"] is not None:
        return float(about["changes"])
    return 1.0 if about["distinct"] * 2 <= layer.experts else 0.0


def spread(layer: LayerSums) -> float:
    """Largest minus smallest selection bias, of the finite ones."""
    finite = [v for v in layer.selection_bias or () if v is not None]
    return max(finite) - min(finite) if finite else 0.0


def _known(layer: LayerSums) -> bool:
    return any(v is not None for v in layer.selection_bias or ())
