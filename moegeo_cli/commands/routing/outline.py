"""What the report of `moegeo routing` says, whatever its format: sentences, and tables as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moegeo_cli.commands.routing.record import RoutingLayerRecord, RoutingRecord
from moegeo_cli.records import Metric, Metrics
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import checkpoint_name, coverage_gaps, probe_words

T = TypeVar("T")
MOST_ROWS = 16  # of a table on a page; spread evenly, and every other format has them all


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric to be shown, with its null in brackets where that says something."""

    name: str
    metric: Metric | None
    null: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its title, how to read it, headings, rows that begin with their name."""

    title: str
    explanation: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()


def head_lines(record: RoutingRecord) -> list[str]:
    """What was measured, and what must be said of it."""
    name = checkpoint_name(record.checkpoint)
    words = f"{clean(record.model_type)}, {name}probe {probe_words(record.probe)}"
    return [words, *(clean(note) for note in record.notes)]


def gaps(record: RoutingRecord) -> list[str]:
    """What was not measured; empty where everything was."""
    return coverage_gaps(record)


def sentences(record: RoutingRecord) -> list[str]:
    """The findings of each part in a sentence, as means over routers."""
    found = []
    cosine, by_chance = _mean_pair(record, "cosine")
    visible, _ = _mean_pair(record, "visible")
    if cosine is not None:
        words = (
            f"Geometry: over tokens of two sequences, similarity of hidden states and of "
            f"experts have a rank correlation of {cosine:.2f} ({by_chance:.2f} by chance)"
        )
        found.append(words + (f"; of what the router sees, {visible:.2f}." if visible else "."))
    energy, response, constant = (
        _known(record.metrics, n) for n in ("shared_energy", "response_relative", "constant_share")
    )
    if energy and response and constant:
        found.append(
            f"Shared direction: {energy.value:.0%} of the inputs' energy and {constant.value:.0%} "
            f"of the logits' is the same for every token; the router answers to it "
            f"{response.value:.2f} times as strongly as to a random direction."
        )
    unrelated, sequence, same = (
        _known(record.metrics, n)
        for n in ("overlap_unrelated", "overlap_sequence", "vocabulary_overlap")
    )
    if unrelated and unrelated.null_value is not None:
        words = (
            f"Unrelated tokens have {unrelated.value:.1%} of their experts in common, "
            f"{unrelated.null_value:.1%} if all were used evenly"
        )
        more = [
            f"of one {what} {m.value:+.1%}"
            for what, m in (("sequence", sequence), ("token id", same)) if m
        ]  # fmt: skip
        if more:
            words += f"; above what the load gives, tokens {' and '.join(more)}"
        found.append(f"Load and content: {words[0].lower()}{words[1:]}.")
    gap, own = (_known(record.metrics, n) for n in ("domain_gap", "rollout_overlap"))
    if gap:
        found.append(
            f"Domains: tokens of one domain have {gap.value:+.1%} more in common than of two "
            f"({_tested(record, 'domain_p_value')})."
        )
    if own:
        found.append(
            f"Continuation: its experts overlap {own.value:+.1%} more with those of its own first "
            f"part than with others' ({_tested(record, 'rollout_p_value')})."
        )
    return found


def tables(record: RoutingRecord, most: int | None = MOST_ROWS) -> list[Table]:
    """All tables that the record has something for, of `most` rows each; None for all."""
    layers = tuple(_spread(record.layers, most))
    found = [
        Table(
            "GEOMETRY AND USAGE",
            "rank correlation of hidden and usage similarity, over pairs",
            ("layer", "same sequence", "two sequences", "visible", "sequences"),
            tuple((_place(x), _geometry(x)) for x in layers),
            ("rank correlation of two similarities: of router inputs, and of routing "
             "distributions; for tokens of one sequence, tokens of two sequences, and whole "
             "sequences; visible: inputs as the router's rows see them, tokens of two sequences",
             "(n) is the mean absolute correlation after permuting whole sequences"),
        ),
        _of_layers(
            layers, "SHARED DIRECTION", "the mean of the router's inputs, and the answer to it",
            ("energy", "response", "constant", "collapse", "row space"),
            ("shared_energy", "response_relative", "constant_share", "collapse",
             "row_space_share"),
            ("energy: its share of the inputs' energy; response: how strongly the router answers "
             "to it, over a random direction; constant: share of the logits' energy that is the "
             "same for every token; row space: share of hidden variance that the router can see",
             "(n) is what sampling alone gives; for row space, the share that a random subspace "
             "holds"),
            {"shared_energy", "constant_share", "row_space_share"},
        ),
        _of_layers(
            layers, "EXPERTS IN COMMON",
            "of two tokens, which are of different sequences but for the column sequence",
            ("unrelated", "sequence", "position", "same id", "domain", "p"),
            ("overlap_unrelated", "overlap_sequence", "overlap_position", "vocabulary_overlap",
             "domain_gap", "domain_p_value"),
            ("unrelated: share of the chosen experts, (n) if all were used evenly; the other "
             "columns are above what the layer's load gives; sequence, position, same id: of "
             "tokens that have it in common; domain: of tokens of one domain less those of two, p "
             "from permuting the domains of whole sequences",),
            {"overlap_unrelated"},
        ),
        _of_layers(
            layers, "SPECIALISATION", "(n) is the value of the null",
            ("vocabulary", "domains", "together", "sequences"),
            ("vocabulary_specialization", "domain_specialization", "coactivation_excess",
             "sequence_affinity"),
            ("vocabulary: largest share of a token id's occurrences at one expert; domains: "
             "distance of their loads from the layer's; together: distance of chosen pairs from "
             "what loads alone give; sequences: similarity of their loads, (n) if choices were "
             "permuted at random",),
            {"vocabulary_specialization", "domain_specialization", "coactivation_excess",
             "sequence_affinity"},
        ),
    ]  # fmt: skip
    for prefix, title, words in (
        ("rollout", "FIRST PART AND CONTINUATION", "of the probe's sequences"),
        ("generated", "GENERATED CONTINUATION", "prompts continued by the model itself"),
    ):
        if any(f"{prefix}_overlap" in x.metrics for x in layers):
            found.append(
                _of_layers(
                    layers, title, words, ("own", "same domain", "correlation", "p"),
                    tuple(f"{prefix}_{n}" for n in ("overlap", "same_domain", "correlation",
                                                    "p_value")),
                    ("own: overlap of the experts of a first part and of its own continuation, "
                     "above other sequences' continuations; same domain: the same with other "
                     "continuations of its domain; correlation: of the deviations of both parts "
                     "from their means; p from permuting continuations",),
                    set(),
                )
            )  # fmt: skip
    found += [*_domains(record), *_training(record), *_other(record, most)]
    return [table for table in found if _says_something(table)]


def checks(record: RoutingRecord) -> list[str]:
    """What became of the rules that found nothing."""
    return [
        f"check {check.id} {check.name}: {clean(check.reason or 'passed')}"
        for check in record.checks
        if check.outcome != "found"
    ]


def settings_words(record: RoutingRecord) -> str:
    """How it was measured, for the foot."""
    names = ("pairs", "kept_tokens", "max_tokens", "generate", "dtype", "device", "seed")
    return ", ".join(f"{name} {record.settings[name]}" for name in names)


def left_out(record: RoutingRecord) -> str:
    """How many rows tables do not show, "" for none."""
    more = len(record.layers) - MOST_ROWS
    return f"{more} more layers: --format json has them all" if more > 0 else ""


def _of_layers(
    layers: Sequence[RoutingLayerRecord], title: str, explanation: str, heads: tuple[str, ...],
    names: tuple[str, ...], notes: tuple[str, ...], with_null: set[str],
) -> Table:  # fmt: skip
    rows = tuple(
        (_place(x), tuple(Cell(n, x.metrics.get(n), n in with_null) for n in names)) for x in layers
    )
    return Table(title, explanation, ("layer", *heads), rows, notes)


def _geometry(layer: RoutingLayerRecord) -> tuple[Cell, ...]:
    by = {(g.pairs, g.hidden): g.spearman for g in layer.geometry if g.usage == "distribution"}
    return (
        Cell("spearman", by.get(("within", "cosine")), True),
        Cell("spearman", by.get(("across", "cosine")), True),
        Cell("spearman", by.get(("across", "visible")), True),
        Cell("spearman", by.get(("sequences", "cosine")), True),
    )


def _domains(record: RoutingRecord) -> list[Table]:
    rows = tuple(
        (clean(d.domain), (Cell("within", d.within), Cell("across", d.across)))
        for d in record.domains
    )
    return [
        Table(
            "DOMAINS", "experts in common above chance, means over layers",
            ("domain", "with itself", "with others"), rows,
        )
    ]  # fmt: skip


def _training(record: RoutingRecord) -> list[Table]:
    course = record.trajectory
    if course is None:
        return []
    names = ("shared_energy", "response_relative", "constant_share", "collapse", "saturation")
    rows = tuple(
        (figures.step_name(s.step, clean(s.path)), tuple(Cell(n, s.metrics.get(n)) for n in names))
        for s in course.steps
    )
    notes = [
        f"{words}: {figures.number(m.value, 2)} {figures.interval(m, 2)}"
        for words, m in (
            ("rank correlation of response with step", course.metrics["response_with_step"]),
            ("with collapse, over layers and steps", course.metrics["response_with_collapse"]),
        )
        if m.value is not None
    ]
    heads = ("", "energy", "response", "constant", "collapse", "saturation")
    return [Table("OVER TRAINING", "means over layers", heads, rows, tuple(notes))]


def _other(record: RoutingRecord, most: int | None) -> list[Table]:
    other = record.other
    if other is None:
        return []
    names = ("mantel", "mantel_p_value", "overlap_same_token", "expert_match")
    rows = tuple(
        (
            f"{figures.layer_name(x.layer, x.router)} / "
            f"{figures.layer_name(x.other_layer, x.other_router)}",
            tuple(Cell(n, x.metrics.get(n), n in {"mantel", "expert_match"}) for n in names),
        )
        for x in _spread(other.layers, most)
    )
    lineage = {
        True: "one lineage", False: "no ancestor in common", None: "lineage could not be told"
    }  # fmt: skip
    return [
        Table(
            f"BESIDE {clean(other.name)}", f"{clean(other.model_type)}: {lineage[other.lineage]}",
            ("layers", "similarity", "p", "same token", "weights"), rows,
            (f"{clean(other.lineage_reason)}",
             "similarity: correlation of the two models' tables of similarities between tokens "
             "(Mantel), p from permuting whole sequences; same token: experts in common above "
             "those of unrelated tokens; (n) is the value of the null"),
        )
    ]  # fmt: skip


def _says_something(table: Table) -> bool:
    return any(cell.metric is not None for _, cells in table.rows for cell in cells)


def _place(layer: RoutingLayerRecord) -> str:
    return figures.layer_name(layer.layer, layer.router)


def _spread(rows: Sequence[T], most: int | None) -> Iterable[T]:
    if most is None or len(rows) <= most:
        return rows
    last = len(rows) - 1
    return [rows[round(i * last / (most - 1))] for i in range(most)]


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


def _tested(record: RoutingRecord, name: str) -> str:
    values = [m.value for x in record.layers if (m := _known(x.metrics, name)) is not None]
    low = [v for v in values if v is not None and v < 0.05]
    return f"p < 0.05 in {len(low)} of {figures.plural(len(values), 'layer')}"
