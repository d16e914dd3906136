"""The words of the report of `moegeo experts`, for all formats."""

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
    "overlap: mean cos² of the angles between two experts' subspaces (of their inputs or outputs "
    "at routed tokens); asymmetry: overlap of inputs minus |alignment|",
    "(n) is the null value: for alignment with disturbed experts, for overlap with the same number "
    "of random tokens of the layer",
)


def head(record: ExpertsRecord) -> list[str]:
    """The first lines of the report: what was measured, how, and notes."""
    methods = sorted({layer.method for layer in record.layers})
    counts = sorted({layer.directions for layer in record.layers if layer.directions is not None})
    how = ["whole Jacobians" if d == 0 else f"{d} random directions per token" for d in counts]
    words = [
        f"{clean(record.model_type)}, {checkpoint_name(record.checkpoint)}"
        f"probe {probe_words(record.probe)}",
        clean("; ".join([*methods, *how])),
    ]
    if record.settings.get("reweighting"):
        words.append("tokens weighted by the whole routing distribution: this does not show how "
                     "a model trained with soft routing would behave")  # fmt: skip
    return [*words, *(clean(note) for note in record.notes)]


def gaps(record: ExpertsRecord) -> list[str]:
    """Lines about what was not measured; empty if everything was."""
    return coverage_gaps(record)


def checks(record: ExpertsRecord) -> list[str]:
    """A line for each rule that found nothing: passed, or why it was skipped."""
    lines = [
        f"{check.id} {check.name}: {clean(check.reason or 'passed')}"
        for check in record.checks
        if check.outcome != "found"
    ]
    return [f"check {line}" for line in lines]


def place(layer: ExpertLayerRecord) -> str:
    """The name of a layer."""
    return figures.layer_name(layer.layer, layer.router)


def candidate_layer(candidate: MergeCandidate | PruneCandidate) -> str:
    """The name of a candidate's layer."""
    return clean(figures.layer_name(candidate.layer, candidate.router))


def null(metric: Metric) -> str:
    """The null value in brackets; "" if there is none."""
    return "" if metric.null_value is None else f" ({metric.null_value:.2f})"


def asymmetry(record: ExpertsRecord) -> list[str]:
    """Sentences on whether inputs and functions of experts agree."""
    decided = [layer for layer in record.layers if layer.coexist is not None]
    if not decided:
        return []
    both = [place(layer) for layer in decided if layer.coexist]
    lines = [
        f"In {len(both)} of {figures.plural(len(decided), 'layer')}, inputs overlap more than "
        "random subspaces and more than functions align. Randomly initialised experts show this "
        "too."
    ]
    same_inputs = sum(layer.seen_alike_done_differently or 0 for layer in decided)
    same_functions = sum(layer.seen_differently_done_alike or 0 for layer in decided)
    lines.append(
        f"Inputs and functions disagree (their ranks differ by more than half of the layer's "
        f"pairs): {figures.plural(same_inputs, 'pair')} with similar inputs and different "
        f"functions, {figures.plural(same_functions, 'pair')} with different inputs and similar "
        "functions."
    )
    return lines


def merges(record: ExpertsRecord) -> list[str]:
    """A line for each pair to merge, best first."""
    return [
        f"layer {candidate_layer(c)}: {' + '.join(map(str, c.experts))}: {clean(c.reason)}"
        for c in record.merge_candidates
    ]


def prunes(record: ExpertsRecord) -> list[str]:
    """A line for each expert to prune, best first."""
    return [
        f"layer {candidate_layer(c)}: {c.expert}: score {figures.number(c.score)}: "
        f"{clean(c.reason)}"
        for c in record.prune_candidates
    ]


def loss(record: ExpertsRecord) -> str:
    """The loss before the trials."""
    assert record.verification is not None
    value = record.verification.loss.value
    return "?" if value is None else f"{figures.number(value)} before"


def action(trial: Trial, count: int) -> str:
    """The action of a trial, such as "merge 4"."""
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
    """The settings, for the end of the report."""
    names: Sequence[str] = (
        "tokens", "weights", "rank", "jacobian_tokens", "kept_tokens", "max_tokens", "dtype",
        "device", "seed",
    )  # fmt: skip
    return ", ".join(f"{name} {record.settings[name]}" for name in names)
