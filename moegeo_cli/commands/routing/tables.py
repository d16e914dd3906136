"""The tables of the report of `moegeo routing`, for all formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moegeo_cli.commands.routing.record import RoutingLayerRecord, RoutingRecord
from moegeo_cli.records import Metric
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean

T = TypeVar("T")
MAX_ROWS = 16  # of a table on a terminal, spread evenly over the layers; JSON has all


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric to show; `null` says whether its null value is shown in brackets."""

    name: str
    metric: Metric | None
    null: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table: title, explanation, headings, rows (name and cells), and notes."""

    title: str
    explanation: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()


def tables(record: RoutingRecord, most: int | None = MAX_ROWS) -> list[Table]:
    """All tables that have a metric, with at most `most` rows each; None for all rows."""
    layers = tuple(_choose_evenly(record.layers, most))
    found = [
        Table(
            "GEOMETRY AND USAGE",
            "rank correlation of hidden and usage similarity, over pairs",
            ("layer", "same sequence", "two sequences", "visible", "sequences"),
            tuple((_place(x), _geometry(x)) for x in layers),
            ("rank correlation between similarity of router inputs and similarity of routing "
             "distributions, over pairs of tokens (of one sequence, of two sequences) or of whole "
             "sequences; visible: only the part of the inputs that the router's rows see, over "
             "tokens of two sequences",
             "(n) is the mean absolute correlation after permuting whole sequences"),
        ),
        _layer_table(
            layers, "SHARED DIRECTION", "the mean of the router's inputs, and the response to it",
            ("energy", "response", "constant", "collapse", "row space"),
            ("shared_energy", "response_relative", "constant_share", "collapse",
             "row_space_share"),
            ("energy: its share of the inputs' energy; response: how strongly the router responds "
             "to it, relative to a random direction; constant: share of the logits' energy that "
             "is the same for every token; row space: share of the inputs' variance that the "
             "router can see",
             "(n) is the value by sampling alone; for row space, the share of a random subspace"),
            {"shared_energy", "constant_share", "row_space_share"},
        ),
        _layer_table(
            layers, "EXPERTS IN COMMON",
            "of two tokens; of different sequences, except in the column sequence",
            ("unrelated", "sequence", "position", "same id", "domain", "p"),
            ("overlap_unrelated", "overlap_sequence", "overlap_position", "vocabulary_overlap",
             "domain_gap", "domain_p_value"),
            ("unrelated: share of the chosen experts, (n) if all were used evenly; the other "
             "columns are shares above what the layer's load gives; sequence, position, same id: "
             "two tokens of the same sequence, position or id; domain: two tokens of one domain "
             "minus two tokens of different domains, p from permuting the domains of whole "
             "sequences",),
            {"overlap_unrelated"},
        ),
        _layer_table(
            layers, "SPECIALISATION", "(n) is the null value",
            ("vocabulary", "domains", "together", "sequences"),
            ("vocabulary_specialization", "domain_specialization", "coactivation_excess",
             "sequence_affinity"),
            ("vocabulary: largest share of a token id's occurrences at one expert; domains: "
             "distance between the loads of domains and the layer's load; together: distance "
             "between the chosen pairs of experts and what the loads alone give; sequences: "
             "similarity of two sequences' loads, (n) if choices were permuted at random",),
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
                _layer_table(
                    layers, title, words, ("own", "same domain", "correlation", "p"),
                    tuple(f"{prefix}_{n}" for n in ("overlap", "same_domain", "correlation",
                                                    "p_value")),
                    ("own: overlap of the experts of a first part with its own continuation, "
                     "above the overlap with other sequences' continuations; same domain: overlap "
                     "with other continuations of its domain; correlation: of both parts' "
                     "deviations from their means; p from permuting continuations",),
                    set(),
                )
            )  # fmt: skip
    found += [*_domains(record), *_training(record), *_other(record, most)]
    return [table for table in found if _has_metric(table)]


def left_out(record: RoutingRecord) -> str:
    """A line on how many layers the tables leave out; "" for none."""
    more = len(record.layers) - MAX_ROWS
    return f"{more} more layers: --format json has them all" if more > 0 else ""


def _layer_table(
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
    trajectory = record.trajectory
    if trajectory is None:
        return []
    names = ("shared_energy", "response_relative", "constant_share", "collapse", "saturation")
    rows = tuple(
        (figures.step_name(s.step, clean(s.path)), tuple(Cell(n, s.metrics.get(n)) for n in names))
        for s in trajectory.steps
    )
    notes = [
        f"{words}: {figures.number(m.value, 2)} {figures.interval(m, 2)}"
        for words, m in (
            ("rank correlation of response with step", trajectory.metrics["response_with_step"]),
            ("with collapse, over layers and steps", trajectory.metrics["response_with_collapse"]),
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
        for x in _choose_evenly(other.layers, most)
    )
    lineage = {
        True: "common ancestor", False: "no common ancestor", None: "lineage not known"
    }  # fmt: skip
    return [
        Table(
            f"COMPARED WITH {clean(other.name)}",
            f"{clean(other.model_type)}: {lineage[other.lineage]}",
            ("layers", "similarity", "p", "same token", "weights"), rows,
            (f"{clean(other.lineage_reason)}",
             "similarity: correlation between the two models' similarities of tokens (Mantel), p "
             "from permuting whole sequences; same token: experts in common at the same token, "
             "above those at unrelated tokens; (n) is the null value"),
        )
    ]  # fmt: skip


def _has_metric(table: Table) -> bool:
    return any(cell.metric is not None for _, cells in table.rows for cell in cells)


def _place(layer: RoutingLayerRecord) -> str:
    return figures.layer_name(layer.layer, layer.router)


def _choose_evenly(rows: Sequence[T], most: int | None) -> Iterable[T]:
    if most is None or len(rows) <= most:
        return rows
    last = len(rows) - 1
    return [rows[round(i * last / (most - 1))] for i in range(most)]
