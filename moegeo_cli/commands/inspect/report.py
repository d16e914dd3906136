"""The terminal report of `moegeo inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from moegeo_cli.commands.inspect.record import InspectionRecord, RouterFacts
from moegeo_cli.reports import figures
from moegeo_cli.reports.advice_text import setting
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page

# The facts of a checkpoint in reading order: heading, then keys of the inspection.
FACTS = (
    ("MODEL", ("model_type", "architecture", "parameters", "dtypes", "layers", "experts", "top_k",
               "scoring", "renormalised", "selection_bias", "groups", "balance_loss_key")),
    ("FILES", ("layout", "complete", "files", "bytes", "tensors", "weights", "left_out", "config")),
    ("TRAINING", ("framework", "step", "tokens", "settings")),
)  # fmt: skip


def print_inspection(found: InspectionRecord, console: Console) -> None:
    """Print an inspection: the number of routers, then facts, routers and checkpoints."""
    page = Page(console)
    page.line(f"moegeo inspect {clean(found.name)}", "bold")
    if found.inspected:
        count = len(found.checkpoints or ())
        page.line(f"a run of {count} checkpoints; this is {clean(found.inspected)}")
    expected, seen = found.routers_expected, found.routers_found
    words = f"{figures.plural(seen, 'router')} found"
    words += f" of {expected} that the config describes" if expected is not None else ""
    page.line(words, "" if expected in (None, seen) else STYLES["failing"])
    if found.problem:
        page.show(page.paragraph(clean(found.problem), STYLES["failing"], sign="!"))
    for heading, keys in FACTS:
        page.section(heading)
        table = page.table(("", "left"), ("", "wrap"))
        table.show_header, table.box = False, None
        for key in keys:
            value = getattr(found, key)
            fact = _weights(value) if key == "weights" else _fact(value)
            table.add(page.text(f"  {key.replace('_', ' ')}"), page.text(fact))
        page.show_table(table)
        if heading == "FILES":
            _print_moves(page, found.weights["adapter"])
    for note in found.notes:
        page.show(page.paragraph(clean(note), sign=page.glyphs.bullet, indent=2))
    _print_routers(page, found.routers)
    _print_checkpoints(page, found)


def _weights(found: Mapping[str, Any]) -> str:
    """How the tensors were obtained, in words. The changes of an adapter are printed below."""
    adapter = found["adapter"]
    facts = {**found, "adapter": None if adapter is None else adapter["merged"]}
    return (
        _fact({name: value for name, value in facts.items() if value})
        if any(facts.values())
        else "as stored"
    )


def _print_moves(page: Page, adapter: Mapping[str, Any] | None) -> None:
    """Print what an adapter changes, by layer."""
    if adapter is None or adapter["moves"] is None:
        return
    page.section("ADAPTER", "norm of its change over norm of the weight, by layer")
    if not adapter["moves"]:
        page.line("  it changes no router and no expert")
        return
    table = page.table(("layer", "right"), ("part", "left"), ("change", "right"), ("read", "left"))
    for move in adapter["moves"]:
        read = "" if move["of"] is None else f"{move['experts']} of {move['of']} experts"
        table.add(
            str(move["layer"]),
            page.text(move["part"]),
            "–" if move["relative"] is None else figures.number(move["relative"]),
            page.text(read),
        )
    page.show_table(table)


def _fact(value: Any) -> str:
    """A fact as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ([], (), {}):
        return "–"
    if isinstance(value, int):
        return figures.count(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(k)} {_fact(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_fact(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    return setting(value)


def _print_routers(page: Page, routers: Sequence[RouterFacts]) -> None:
    if not routers:
        return
    page.section("ROUTERS")
    table = page.table(
        ("layer", "right"), ("weight", "wrap"), ("experts × width", "left"), ("dtype", "left"),
        ("bias", "left"),
    )  # fmt: skip
    for router in routers:
        biases = [n for n in ("bias", "selection_bias") if getattr(router, n)]
        table.add(
            str(router.layer),
            page.text(clean(router.router) + ("" if router.main else " (not in the LM)")),
            page.text(" × ".join(str(n) for n in router.shape)),
            page.text(clean(router.dtype)),
            page.text(", ".join(n.replace("_bias", "") for n in biases) or "none"),
        )
    page.show_table(table)


def _print_checkpoints(page: Page, found: InspectionRecord) -> None:
    if found.checkpoints is None:
        return
    page.section("CHECKPOINTS")
    for entry in found.checkpoints:
        step = figures.step_name(entry.step)
        page.line(f"{step}: {clean(entry.path)} ({clean(entry.layout)})", indent=2)
    for item in found.skipped or ():
        words = f"skipped {clean(item['path'])}: {clean(item['reason'])}"
        page.show(page.paragraph(words, STYLES["watch"], indent=2))
