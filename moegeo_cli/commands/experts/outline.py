"""What the report of `moegeo experts` says, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.commands.experts.record import (
    ExpertLayerRecord,
    ExpertsRecord,
    MergeCandidate,
    PruneCandidate,
    Trial,
)
from moegeo_cli.records import Metric
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import checkpoint_name, coverage_gaps, probe_words

COLUMNS = (
    ("alignment", "alignment"), ("overlap_input", "overlap, in"),
    ("overlap_output", "overlap, out"),
    ("asymmetry", "asymmetry"),
)  # fmt: skip
EXPLANATIONS = (
    "alignment: mean cosine of Jacobians over pairs",
    "overlap: mean cos² of the angles between subspaces of routed tokens, of experts' inputs and "
    "outputs; asymmetry: overlap of inputs less the size of alignment",
    "(n) is the value of the null: disturbed experts for alignment, as many random tokens of the "
    "layer for overlap",
)


def head(record: ExpertsRecord) -> list[str]:
    """What was measured, and what must be said of it."""
    methods = sorted({layer.method for layer in record.layers})
    taken = sorted({layer.directions for layer in record.layers if layer.directions is not None})
    how = ["whole Jacobians" if d == 0 else f"{d} random directions a token" for d in taken]
    words = [
        f"{clean(record.model_type)}, {checkpoint_name(record.checkpoint)}"
        f"probe {probe_words(record.probe)}",
        clean("; ".join([*methods, *how])),
    ]
    if record.settings.get("reweighting"):
        words.append("tokens weighed by the whole routing distribution: the model is the "
                     "same, so this says nothing of a model trained with soft routing")  # fmt: skip
    return [*words, *(clean(note) for note in record.notes)]


def gaps(record: ExpertsRecord) -> list[str]:
    """What was not measured; empty where everything was."""
    return coverage_gaps(record)


def checks(record: ExpertsRecord) -> list[str]:
    """What became of the rules that found nothing."""
    lines = [
        f"{check.id} {check.name}: {clean(check.reason or 'passed')}"
        for check in record.checks
        if check.outcome != "found"
    ]
    return [f"check {line}" for line in lines]


def place(layer: ExpertLayerRecord) -> str:
    """A layer's name."""
    return figures.layer_name(layer.layer, layer.router)


def at(candidate: MergeCandidate | PruneCandidate) -> str:
    """The layer of a candidate."""
    return clean(figures.layer_name(candidate.layer, candidate.router))


def null(metric: Metric) -> str:
    """The value of the null in brackets."""
    return "" if metric.null_value is None else f" ({metric.null_value:.2f})"


def asymmetry(record: ExpertsRecord) -> list[str]:
    """How inputs and functions agree, in sentences."""
    told = [layer for layer in record.layers if layer.coexist is not None]
    if not told:
        return []
    both = [place(layer) for layer in told if layer.coexist]
    lines = [
        f"Subspaces overlap more than random ones, and more than functions align, in {len(both)} "
        f"of {figures.plural(len(told), 'layer')}; randomly initialised experts do so too."
    ]
    alike = sum(layer.seen_alike_done_differently or 0 for layer in told)
    apart = sum(layer.seen_differently_done_alike or 0 for layer in told)
    lines.append(
        f"Inputs and functions disagree (ranks among a layer's pairs over half apart): "
        f"{figures.plural(alike, 'pair')} seen alike and done differently, "
        f"{figures.plural(apart, 'pair')} seen differently and done alike."
    )
    return lines


def merges(record: ExpertsRecord) -> list[str]:
    """Pairs to merge, best first, in sentences."""
    return [
        f"layer {at(c)}: {' + '.join(map(str, c.experts))}: {clean(c.reason)}"
        for c in record.merge_candidates
    ]


def prunes(record: ExpertsRecord) -> list[str]:
    """Experts to prune, first those, in sentences."""
    return [
        f"layer {at(c)}: {c.expert}: score {figures.number(c.score)}: {clean(c.reason)}"
        for c in record.prune_candidates
    ]


def loss(record: ExpertsRecord) -> str:
    """The loss before any trial."""
    assert record.verification is not None
    value = record.verification.loss.value
    return "?" if value is None else f"{figures.number(value)} before"


def action(trial: Trial, count: int) -> str:
    """What a trial did."""
    return f"{trial.action} {count}"


def change(trial: Trial) -> str:
    """The change of the loss with its interval."""
    metric = trial.change
    if metric.value is None:
        return "–"
    if metric.ci_low is None or metric.ci_high is None:
        return f"{metric.value:+.4f}"
    return f"{metric.value:+.4f} [{metric.ci_low:+.4f}, {metric.ci_high:+.4f}]"


def settings(record: ExpertsRecord) -> str:
    """How it was measured, for the foot."""
    names: Sequence[str] = (
        "tokens", "weights", "rank", "jacobian_tokens", "kept_tokens", "max_tokens", "dtype",
        "device", "seed",
    )  # fmt: skip
    return ", ".join(f"{name} {record.settings[name]}" for name in names)
