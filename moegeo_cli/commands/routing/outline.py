"""The sentences of the report of `moegeo routing`, for all formats."""

from __future__ import annotations

from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.records import Metric, Metrics
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import checkpoint_name, coverage_gaps, probe_words


def head_lines(record: RoutingRecord) -> list[str]:
    """The first lines of the report: what was measured, and notes."""
    name = checkpoint_name(record.checkpoint)
    words = f"{clean(record.model_type)}, {name}probe {probe_words(record.probe)}"
    return [words, *(clean(note) for note in record.notes)]


def gaps(record: RoutingRecord) -> list[str]:
    """Lines about what was not measured; empty if everything was."""
    return coverage_gaps(record)


def sentences(record: RoutingRecord) -> list[str]:
    """One sentence per part of the report, with means over routers."""
    found = []
    cosine, by_chance = _mean_pair(record, "cosine")
    visible, _ = _mean_pair(record, "visible")
    if cosine is not None:
        words = (
            "Geometry: similarity of hidden states and similarity of experts have a rank "
            f"correlation of {cosine:.2f} over pairs of tokens from two sequences "
            f"({by_chance:.2f} by chance)"
        )
        seen = f"; for the part that the router sees, {visible:.2f}." if visible else "."
        found.append(words + seen)
    energy, response, constant = (
        _known(record.metrics, n) for n in ("shared_energy", "response_relative", "constant_share")
    )
    if energy and response and constant:
        found.append(
            f"Shared direction: {energy.value:.0%} of the inputs' energy and {constant.value:.0%} "
            "of the logits' energy is the same for every token. The router responds "
            f"{response.value:.2f} times as strongly to this direction as to a random one."
        )
    unrelated, sequence, same = (
        _known(record.metrics, n)
        for n in ("overlap_unrelated", "overlap_sequence", "vocabulary_overlap")
    )
    if unrelated and unrelated.null_value is not None:
        words = (
            f"Load and content: two unrelated tokens have {unrelated.value:.1%} of their experts "
            f"in common ({unrelated.null_value:.1%} if all experts were used evenly)."
        )
        more = [
            f"{m.value:+.1%} for tokens of the same {what}"
            for what, m in (("sequence", sequence), ("id", same)) if m
        ]  # fmt: skip
        if more:
            words += f" Above what the load gives: {' and '.join(more)}."
        found.append(words)
    gap, own = (_known(record.metrics, n) for n in ("domain_gap", "rollout_overlap"))
    if gap:
        found.append(
            f"Domains: two tokens of one domain have {gap.value:+.1%} more experts in common than "
            f"tokens of two domains ({_p_words(record, 'domain_p_value')})."
        )
    if own:
        found.append(
            f"Continuation: its experts overlap {own.value:+.1%} more with those of its own first "
            "part than with those of other first parts "
            f"({_p_words(record, 'rollout_p_value')})."
        )
    return found


def checks(record: RoutingRecord) -> list[str]:
    """A line for each rule that found nothing: passed, or why it was skipped."""
    return [
        f"check {check.id} {check.name}: {clean(check.reason or 'passed')}"
        for check in record.checks
        if check.outcome != "found"
    ]


def settings_words(record: RoutingRecord) -> str:
    """The settings, for the end of the report."""
    names = ("pairs", "kept_tokens", "max_tokens", "generate", "dtype", "device", "seed")
    return ", ".join(f"{name} {record.settings[name]}" for name in names)


def _mean_pair(record: RoutingRecord, hidden: str) -> tuple[float | None, float | None]:
    found = [
        g.spearman
        for layer in record.layers
        for g in layer.geometry
        if (g.pairs, g.hidden, g.usage) == ("across", hidden, "distribution")
    ]
    known = [(m.value, m.null_value or 0.0) for m in found if m.value is not None]
    if not known:
        return None, None
    return sum(v for v, _ in known) / len(known), sum(n for _, n in known) / len(known)


def _known(metrics: Metrics, name: str) -> Metric | None:
    metric = metrics.get(name)
    return metric if metric is not None and metric.value is not None else None


def _p_words(record: RoutingRecord, name: str) -> str:
    values = [m.value for x in record.layers if (m := _known(x.metrics, name)) is not None]
    low = [v for v in values if v is not None and v < 0.05]
    return f"p < 0.05 in {len(low)} of {figures.plural(len(values), 'layer')}"
