"""Rules about the loss: in the run's log, on the probe, and compared with a reference run."""

from __future__ import annotations

import math

from moegeo_cli.records import NOT_FINITE, Evidence, Metric, Threshold
from moegeo_cli.records.verdict import Severity
from moegeo_cli.verdict.rules import Found, Outcome, Situation, Skipped, is_early
from moegeo_cli.verdict.training_log import WINDOW

FAR = 1.2  # if two losses differ by this factor, they are of different texts


def loss_behind_reference(situation: Situation) -> Outcome:
    """A loss above the reference's at the same progress: a watch over the limit, else info.

    A significant gap may close later, or come from the seed. The limit is therefore a gap that
    few runs with a good end had.
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
        return Skipped(
            "the reference's loss is not above 0, so a gap relative to it is not defined"
        )
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
    """A jump of the loss in the training log up to this checkpoint."""
    limit = situation.limits["loss-spike"]
    if situation.logged.losses < WINDOW + 1:
        return Skipped(f"the log has fewer than {WINDOW + 1} losses up to here")
    spike = situation.logged.spike(limit.value)
    if spike is None:
        return None
    onset, highest = spike
    return Found(
        "watch",
        f"the training loss jumped at step {onset}, by {highest:.0%} at most over the median of "
        f"the {WINDOW} entries before",
        (),
        (Evidence("loss_rise", Metric(highest)),),
        limit.threshold,
    )


def loss_diverged(situation: Situation) -> Outcome:
    """A loss that is not finite, that lost much of its gain, or that never gained anything.

    The gain is the unigram loss of the probe minus the loss. The loss on the probe alone is not
    failing: a training that moved to other text also gets worse on the probe.
    """
    limit = situation.limits["loss-diverged"]
    logged = situation.logged
    if logged.first_nonfinite is not None:
        return Found(
            "failing",
            f"the training loss is not finite at step {logged.first_nonfinite.get('step')}",
            (),
            (Evidence("loss_log", Metric(None, reason="NaN or infinite")),),
            Threshold(None, "exact"),
        )
    now = situation.now.loss
    if now.value is None and now.reason == NOT_FINITE:
        return Found(
            "failing", "the loss on the probe is not finite", (), (Evidence("loss", now),),
            Threshold(None, "exact"),
        )  # fmt: skip
    unigram = situation.run.probe.get("unigram_loss")
    if unigram is None:
        return Skipped("the probe has no unigram loss to compare the model's loss with")
    from_log = _lost(logged.lowest_before, logged.level, unigram, limit.value)
    probe = [c.loss.value for c in situation.history if c.loss.value is not None]
    lowest_probe = min(probe[:-1], default=None)
    from_probe = _lost(lowest_probe, probe[-1] if probe else None, unigram, limit.value)
    has_log = logged.level is not None
    if (
        logged.level is not None
        and min(logged.level, now.value or 0.0) >= unigram
        and not is_early(situation)
    ):
        return Found(
            "failing",
            f"the training loss is {logged.level:.3f} nats and that on the probe {now.value:.3f}: "
            f"both above the probe's unigram loss of {unigram:.3f}, so nothing is learned",
            (),
            (Evidence("loss_log", Metric(logged.level)), Evidence("loss", now)),
            limit.threshold,
        )
    if from_log is None and from_probe is None:
        return None
    if from_log is not None:
        lowest, level = from_log
        return Found(
            "failing",
            f"the training loss is {level:.3f} nats after {lowest:.3f}: it lost "
            f"{_share(lowest, level, unigram):.0%} of its gain over the unigram loss of "
            f"{unigram:.3f}",
            (),
            (Evidence("loss_log", Metric(level)),),
            limit.threshold,
        )
    assert from_probe is not None
    lowest, level = from_probe
    words = (
        f"the loss on the probe is {level:.3f} nats after {lowest:.3f}: it lost "
        f"{_share(lowest, level, unigram):.0%} of its gain over the unigram loss of {unigram:.3f}"
    )
    if has_log:
        words += "; the training loss did not, so the training may have moved to other text"
    severity: Severity = "info" if has_log else "watch"
    return Found(severity, words, (), (Evidence("loss", now),), limit.threshold)


def probe_unfit(situation: Situation) -> Outcome:
    """A probe on which the model's loss is not below the unigram loss."""
    unigram = situation.run.probe.get("unigram_loss")
    loss = situation.now.loss
    if unigram is None or loss.value is None:
        return Skipped("no loss was measured on the probe")
    if situation.now.step == 0 or is_early(situation):
        return Skipped("a model at the start of training has learned nothing yet")
    own = situation.run.probe.get("domain_unigram_loss") or {}
    unfit = [
        name
        for name, metric in situation.now.domain_loss.items()
        if metric.value is not None and name in own and metric.value >= own[name]
    ]
    compared = [name for name in situation.now.domain_loss if name in own]
    # A model that was trained on one of the domains only is not unfit for the whole probe.
    whole = loss.value >= unigram and len(unfit) == len(compared)
    if not whole and not unfit:
        return None
    evidence = (Evidence("loss", loss), Evidence("unigram_loss", Metric(unigram)))
    if not whole:
        return Found(
            "info",
            f"the model has not learned the text of {', '.join(unfit)}: its loss there is above "
            "that of the token frequencies, so numbers of those domains say little",
            (),
            evidence,
            Threshold(unigram, "exact: the probe's own unigram loss"),
        )
    level = situation.logged.level
    words = (
        f"the loss on the probe is {loss.value:.3f} nats, above its unigram loss of {unigram:.3f}"
    )
    if level is not None and level < unigram:
        words += (
            f", while the training log says {level:.3f}: the labels of the training are "
            "shifted, or the model was not trained on such text or with this tokenizer"
        )
    else:
        words += ": the model was not trained on such text, or has learned nothing"
    return Found("watch", words, (), evidence, Threshold(unigram, "exact: the unigram loss"))


def learning_rate_high(situation: Situation) -> Outcome:
    """A peak learning rate at which at least half of the evidence study's runs failed."""
    limit = situation.limits["learning-rate-high"]
    peak = situation.logged.peak_rate
    if peak is None:
        return Skipped("the log has no learning rate")
    if peak <= limit.value:
        return None
    return Found(
        "watch",
        f"the learning rate reached {peak:.3g}, which is high for AdamW at any size; other "
        "optimizers (Muon, SGD) have other scales",
        (),
        (Evidence("learning_rate", Metric(peak)),),
        limit.threshold,
    )


def probe_distance(situation: Situation) -> str | None:
    """A sentence if the probe's loss is far from the training loss; None if near or without a log.

    Different losses mean different texts, and routing depends on the text. The training loss is
    the median of the last entries of the log.
    """
    level, loss = situation.logged.level, situation.now.loss.value
    if level is None or loss is None or level <= 0:
        return None
    ratio = loss / level
    if 1.0 / FAR < ratio < FAR:
        return None
    side = "harder" if ratio > 1.0 else "easier"
    return (
        f"the probe is not the run's own text: its loss is {loss:.2f} nats, the training's "
        f"{level:.2f}; all numbers are of this {side} text (--probe FILE takes yours)"
    )


def _lost(
    lowest: float | None, last: float | None, unigram: float, share: float
) -> tuple[float, float] | None:
    """The lowest and the last level, if the last lost more than `share` of the gain; else None."""
    if lowest is None or last is None:
        return None
    gained = unigram - lowest
    return (lowest, last) if gained > 0 and last > lowest + share * gained else None


def _share(lowest: float, level: float, unigram: float) -> float:
    gained = unigram - lowest
    return (level - lowest) / gained if gained > 0 and math.isfinite(level) else math.inf
