"""Rules about how training changes (or does not change) routers, biases and experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from moegeo_cli.records import Evidence, LayerRecord, Metric, Threshold, layer_name
from moegeo_cli.records.facts import Move
from moegeo_cli.records.verdict import Severity
from moegeo_cli.verdict.rules import (
    Found,
    Outcome,
    Situation,
    Skipped,
    evidence,
    known,
    layer_words,
    uncalibrated_severity,
)

EXACT = Threshold(None, "exact")
LAST_MOVES = 3  # the response of a bias is pooled over this many pairs of checkpoints
# Frameworks that train with the checkpoint's own config.
READ_CONFIG = (None, "transformers", "trl", "axolotl")
BALANCE_KEYS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")


def router_frozen(situation: Situation) -> Outcome:
    """Router weights that stay equal, bit for bit, while the rest of the model changes.

    If all logits are equal too, the two checkpoints are copies of each other: that is no finding.
    """
    moves = _moves(situation)
    if not moves:
        return Skipped("needs two checkpoints with steps")
    frozen = [m for m in moves[-1]["layers"] if m.get("weights_equal")]
    moved = any(not m.get("logits_equal", True) for m in moves[-1]["layers"])
    if not frozen or not moved:
        return None
    since = _since(moves, {m["router"] for m in frozen})
    layers = tuple(sorted({m["layer"] for m in frozen}))
    all_of_them = len(frozen) == len(moves[-1]["layers"])
    which = "every router" if all_of_them else f"the router of {layer_words(layers)}"
    return Found(
        "watch",
        f"{which} is equal bit for bit since step {since}, while the rest of the model moves: "
        "it is not in the optimizer, or it is frozen on purpose",
        layers,
        (),
        EXACT,
    )


def router_no_gradient(situation: Situation) -> Outcome:
    """A router that gets no gradient from the loss, as with K = 1 and normalised weights."""
    named = situation.run.settings.get("fisher") or {}
    measured = [x for x in situation.now.layers if x.state == "ok" and _traces(x)]
    if named.get("kind") != "empirical" or not measured:
        return Skipped("no Fisher of the loss was measured")
    # Experts without a token have no Fisher. If all others are 0, the router learns nothing.
    found = [x for x in measured if not any(_traces(x))]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    alone = all(x.top_k == 1 for x in found)
    return Found(
        "watch",
        f"the loss gives the router of {layer_words(layers)} no gradient at all"
        + (
            ": one expert a token, and its weight is divided by itself, so it is always 1"
            if alone
            else ": its combine weights do not depend on its logits, or are detached"
        ),
        layers,
        tuple(Evidence("fisher_trace", Metric(0.0), x.layer, x.router) for x in found[:4]),
        EXACT,
    )


def _traces(layer: LayerRecord) -> list[float]:
    """The Fisher traces of the experts that have one."""
    return [v for v in layer.fisher_trace or () if v is not None]


def bias_unused(situation: Situation) -> Outcome:
    """A selection bias that is still equal for all experts after training began."""
    measured = [
        x
        for x in situation.now.layers
        if (m := x.metrics.get("bias_spread")) is not None and m.value is not None
    ]
    if not measured:
        return Skipped("no router has a selection bias")
    if situation.now.step == 0:
        return Skipped("a selection bias starts equal")
    found = [x for x in measured if x.metrics["bias_spread"].value == 0.0]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    which = (
        "every router" if len(found) == len(measured) else f"the router of {layer_words(layers)}"
    )
    return Found(
        "watch",
        f"the selection bias of {which} is the same for all experts: it is not saved, or nothing "
        "updates it",
        layers,
        tuple(evidence("bias_spread", x) for x in found[:4]),
        EXACT,
    )


def bias_rounded(situation: Situation) -> Outcome:
    """A selection bias whose rounding changes the choices of tokens of the probe."""
    measured = [x for x in situation.now.layers if known(x, "bias_changes")]
    if not measured:
        return Skipped("no router has a selection bias that differs between experts")
    limit = situation.limits["bias-rounded"]
    found = [x for x in measured if (x.metrics["bias_changes"].value or 0.0) > limit.value]
    if not found:
        return None
    layers = tuple(x.layer for x in found)
    worst = max(found, key=lambda x: x.metrics["bias_changes"].value or 0.0)
    share = worst.metrics["bias_changes"].value
    return Found(
        uncalibrated_severity(limit),
        f"the selection bias of {layer_words(layers)} is stored coarsely: {share:.0%} of the "
        f"sampled tokens get other experts in layer {layer_name(worst.layer, worst.router)} "
        "because of that rounding",
        layers,
        tuple(evidence("bias_changes", x) for x in found[:4]),
        limit.threshold,
    )


def bias_wrong_sign(situation: Situation) -> Outcome:
    """A selection bias that rises for experts which are already overloaded."""
    moves = [m for m in _moves(situation) if m["from_step"] != 0][-LAST_MOVES:]
    measured = [
        (row["layer"], found.value, found.n)
        for move in moves
        for row in move["layers"]
        if (found := row["metrics"].get("bias_response")) and found.value is not None and found.n
    ]
    if not measured:
        return Skipped("needs two checkpoints after step 0 between which a selection bias moved")
    limit = situation.limits["bias-wrong-sign"]
    score = sum(value * math.sqrt(n - 1.0) for _, value, n in measured) / math.sqrt(len(measured))
    if score < limit.value:
        return None
    layers = tuple(sorted({layer for layer, value, _ in measured if value > 0.0}))
    mean = sum(value for _, value, _ in measured) / len(measured)
    return Found(
        "watch",
        f"the selection bias of {layer_words(layers)} rises for experts that are overloaded: its "
        f"change has a rank correlation of {mean:+.2f} with the load before, where balancing needs "
        "a negative one: the update has the wrong sign",
        layers,
        (Evidence("bias_response", Metric(mean, n=len(measured), null_value=0.0)),),
        limit.threshold,
    )


def experts_identical(situation: Situation) -> Outcome:
    """Experts with equal weights, bit for bit."""
    looked = [x for x in situation.now.layers if x.experts_identical is not None]
    if not looked:
        return Skipped("the experts' weights were not looked at")
    found = [x for x in looked if x.experts_identical]
    if not found:
        return None
    first = len(situation.history) == 1 and situation.now.step in (0, None)
    layers = tuple(x.layer for x in found)
    shown = "; ".join(
        f"layer {layer_name(x.layer, x.router)}: "
        + ", ".join("=".join(map(str, group)) for group in (x.experts_identical or ())[:4])
        for x in found[:3]
    )
    count = sum(len(group) for x in found for group in x.experts_identical or ())
    among = sum(x.experts for x in looked)
    why = (
        "an upcycled model starts this way"
        if first
        else "a save wrote some experts twice, or a resume copied them"
    )
    return Found(
        "info" if first else "watch",
        f"{count} of {among} experts have the weights of another one, bit for bit ({shown}): {why}",
        layers,
        (Evidence("experts_identical", Metric(float(count))),),
        EXACT,
    )


def balancing_inactive(situation: Situation) -> Outcome:
    """A balance loss that is configured but that the framework does not apply.

    It is a watch if the trainer's state is beside the checkpoint, because then the config was used
    for training. The config of a published checkpoint need not be the one of its training (info).
    """
    training = situation.run.run.get("training") or {}
    framework = situation.run.run.get("framework")
    asked = [
        (key, training[key])
        for key in BALANCE_KEYS
        if isinstance(training.get(key), int | float) and training[key] > 0
    ]
    if not asked:
        return Skipped("the config asks for no balance loss")
    key, value = asked[0]
    severity: Severity = "watch"
    if framework == "nanotron":
        reason = f"{key} = {value:g}, which nanotron declares and never reads"
    elif framework in READ_CONFIG:
        if key != "router_aux_loss_coef" or training.get("output_router_logits") is True:
            return None
        log = situation.run.run.get("log") or ()
        if any("aux_loss" in entry for entry in log):
            return None  # the log proves that the loss was applied
        reason = (
            f"{key} = {value:g} does nothing while output_router_logits is not true: "
            "transformers adds the balance loss only then"
        )
        if not _was_trained_here(situation.run.run):
            severity = "info"
            reason += "; no file beside the checkpoint says that transformers trained it"
    else:
        return Skipped(f"{framework} has its own switch, which the checkpoint does not record")
    return Found(
        severity, reason, (), (Evidence(key, Metric(float(value))),),
        Threshold(None, "transformers 5.23, by running it"),
    )  # fmt: skip


def _was_trained_here(run: Mapping[str, Any]) -> bool:
    """Whether a trainer's state (its log or its planned steps) is beside the checkpoint."""
    training = run.get("training") or {}
    return bool(run.get("log")) or any(str(key).startswith("trainer.") for key in training)


def _moves(situation: Situation) -> list[Move]:
    """Changes between successive checkpoints, up to the judged one."""
    paths = {c.path for c in situation.history}
    found = [m for m in situation.run.dynamics if m["from_path"] in paths and m["to_path"] in paths]
    return found if found and found[-1]["to_path"] == situation.now.path else []


def _since(moves: list[Move], routers: set[str]) -> int | None:
    """The step since which none of these routers has changed."""
    since = moves[-1]["from_step"]
    for move in reversed(moves):
        equal = {m["router"] for m in move["layers"] if m.get("weights_equal")}
        if not routers <= equal:
            break
        since = move["from_step"]
    return since
