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
    """Selection biases that are equal for all experts, or constant while other layers' move."""
    known = [x for x in past.layers if _known(x)]
    if not known:
        return NONE
    if past.now.step == 0 or (past.now.step is None and past.now.sums.fresh is not False):
        return Skipped("a selection bias starts with equal values")
    equal = [x for x in known if spread(x) == 0.0]
    unchanged = [x for x in known if x not in equal and past.since(("bias", x.router)) is not None]
    others_move = any(item[0] == "bias" for item in past.moved)
    if not equal and not (unchanged and others_move):
        return None if not unchanged or not past.moved else _all_held(past, unchanged, known)
    words = []
    if equal:
        values = {x.selection_bias[0] for x in equal if x.selection_bias}
        value = f"{values.pop():g}" if len(values) == 1 else "constant"
        words.append(
            f"the selection bias of {layers_words(equal, known)} is {value} for all experts"
        )
    if unchanged and others_move:
        since = past.since(("bias", unchanged[-1].router))
        assert since is not None
        words.append(
            f"the selection bias of {layers_words(unchanged, known)} is equal bit for bit since "
            f"{since.name}, while the biases of other layers move"
        )
    found = [*equal, *(unchanged if others_move else ())]
    return Found(
        "watch",
        f"{' and '.join(words)}: it is not saved, or nothing updates it",
        numbers(found),
        tuple(Evidence("bias_spread", Metric(spread(x)), x.layer, x.router) for x in found[:4]),
        EXACT,
    )


def _all_held(past: Past, unchanged: list[LayerSums], known: list[LayerSums]) -> Found:
    """The finding if no bias moves, which is usual in training after pretraining."""
    since = past.since(("bias", unchanged[-1].router))
    assert since is not None
    return Found(
        "info",
        f"the selection bias of {layers_words(unchanged, known)} is equal bit for bit since "
        f"{since.name}, while other weights move: nothing updates it",
        numbers(unchanged),
        (),
        EXACT,
    )


def bias_rounded(past: Past) -> Outcome:
    """Selection biases whose rounding changes which experts Gaussian inputs choose."""
    known = [x for x in past.layers if _known(x)]
    if not known:
        return NONE
    limit = past.limits["bias-rounded"]
    found = [x for x in known if _share_changed(x) > limit.value]
    if not found:
        return None
    worst = max(found, key=_share_changed)
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
        f"the selection bias of {layers_words(found, known)} is stored coarsely: layer "
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


def _share_changed(layer: LayerSums) -> float:
    """Share of choices that rounding changes.

    If that is not known: 1 if the bias has few distinct values, else 0.
    """
    about = layer.rounding
    if about is None:
        return 0.0
    if about["changes"] is not None:
        return float(about["changes"])
    return 1.0 if about["distinct"] * 2 <= layer.experts else 0.0


def spread(layer: LayerSums) -> float:
    """Largest minus smallest finite selection bias of a layer; 0 if there is none."""
    finite = [v for v in layer.selection_bias or () if v is not None]
    return max(finite) - min(finite) if finite else 0.0


def _known(layer: LayerSums) -> bool:
    return any(v is not None for v in layer.selection_bias or ())
