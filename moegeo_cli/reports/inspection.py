"""What `moegeo inspect` and `moegeo invariance` found, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import setting
from moegeo_cli.reports.page import STYLES, Page

# The facts of a checkpoint in reading order: heading, then keys of the inspection.
FACTS = (
    ("MODEL", ("model_type", "architecture", "parameters", "dtypes", "layers", "experts", "top_k",
               "scoring", "renormalised", "selection_bias", "groups", "balance_loss_key")),
    ("FILES", ("layout", "complete", "files", "bytes", "tensors", "weights", "left_out", "config")),
    ("TRAINING", ("framework", "step", "tokens", "settings")),
)  # fmt: skip
SHORT = {
    "expert-permutation": "permute",
    "logit-constant": "shift",
    "residual-rotation": "rotate",
    "norm-rescale": "rescale",
}
MUST_HOLD = ("fsi", "collapse", "dispersion")
NO_CHANGE = 5e-7  # of rounding alone


def print_inspection(found: Mapping[str, Any], console: Console) -> None:
    """Print an inspection: the routers' count first, then facts, routers and checkpoints."""
    page = Page(console)
    page.line(f"moegeo inspect {clean(found['name'])}", "bold")
    inspected = found.get("inspected")
    if inspected:
        page.line(f"a run of {len(found['checkpoints'])} checkpoints; below, {clean(inspected)}")
    expected, seen = found["routers_expected"], found["routers_found"]
    words = f"{figures.plural(seen, 'router')} found"
    words += f" of {expected} that the config describes" if expected is not None else ""
    page.line(words, "" if expected in (None, seen) else STYLES["failing"])
    if found["problem"]:
        page.show(page.paragraph(clean(found["problem"]), STYLES["failing"], sign="!"))
    for heading, keys in FACTS:
        page.section(heading)
        table = page.table(("", "left"), ("", "wrap"))
        table.show_header, table.box = False, None
        for key in keys:
            fact = _weights(found[key]) if key == "weights" else _fact(found[key])
            table.add(page.text(f"  {key.replace('_', ' ')}"), page.text(fact))
        page.show_table(table)
        if heading == "FILES":
            _print_moves(page, found["weights"]["adapter"])
    for note in found["notes"]:
        page.show(page.paragraph(clean(note), sign=page.glyphs.bullet, indent=2))
    _print_routers(page, found["routers"])
    _print_checkpoints(page, found)


def _weights(found: Mapping[str, Any]) -> str:
    """What was done to the files' tensors; what an adapter moves stands below."""
    adapter = found["adapter"]
    return _fact({**found, "adapter": None if adapter is None else adapter["merged"]})


def _print_moves(page: Page, adapter: Mapping[str, Any] | None) -> None:
    """What an adapter moves, by layer."""
    if adapter is None or adapter["moves"] is None:
        return
    page.section("ADAPTER", "norm of its change over that of the weight, by layer")
    if not adapter["moves"]:
        page.line("  it moves no router and no expert")
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
    """A fact as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ([], {}):
        return "–"
    if isinstance(value, int):
        return figures.count(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(k)} {_fact(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_fact(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    return setting(value)


def _print_routers(page: Page, routers: Sequence[Mapping[str, Any]]) -> None:
    if not routers:
        return
    page.section("ROUTERS")
    table = page.table(
        ("layer", "right"), ("weight", "wrap"), ("experts × width", "left"), ("dtype", "left"),
        ("bias", "left"),
    )  # fmt: skip
    for router in routers:
        biases = [n for n in ("bias", "selection_bias") if router[n]]
        table.add(
            str(router["layer"]),
            page.text(clean(router["router"]) + ("" if router["main"] else " (not of the LM)")),
            page.text(" × ".join(str(n) for n in router["shape"])),
            page.text(clean(router["dtype"])),
            page.text(", ".join(n.replace("_bias", "") for n in biases) or "none"),
        )
    page.show_table(table)


def _print_checkpoints(page: Page, found: Mapping[str, Any]) -> None:
    if "checkpoints" not in found:
        return
    page.section("CHECKPOINTS")
    for entry in found["checkpoints"]:
        step = figures.step_name(entry["step"])
        page.line(f"{step}: {clean(entry['path'])} ({clean(entry['layout'])})", indent=2)
    for entry in found["skipped"]:
        words = f"skipped {clean(entry['path'])}: {clean(entry['reason'])}"
        page.show(page.paragraph(words, STYLES["watch"], indent=2))


def print_invariance(found: Mapping[str, Any], console: Console) -> None:
    """Print one row a metric, one column a rewriting that applies; the others by name."""
    page = Page(console)
    page.line(f"moegeo invariance {clean(found['name'])}", "bold")
    page.line(f"{clean(found['model_type'])}, {found['probe']['tokens']:,} probe tokens, float32")
    page.section("RELATIVE CHANGE", "weights rewritten so that the outputs stay")
    entries = found["invariance"]
    applied = [e for e in entries if e["applicable"]]
    if applied:
        _print_changes(page, applied)
        page.line()
    for entry in applied:
        name = SHORT.get(entry["name"], entry["name"])
        words = f"{name}: {entry['description']}; the outputs moved by {_deviation(entry)}"
        page.show(page.paragraph(words, indent=2))
    for entry in entries:
        if not entry["applicable"]:
            words = f"{SHORT.get(entry['name'], entry['name'])}: not applicable: {entry['reason']}"
            page.show(page.paragraph(clean(words), "dim", indent=2))
    page.line("* must not change, and neither may the verdict; the others say what they depend on")


def _deviation(entry: Mapping[str, Any]) -> str:
    return "nothing" if not entry["logits_deviation"] else f"{entry['logits_deviation']:.0e}"


def _print_changes(page: Page, applied: Sequence[Mapping[str, Any]]) -> None:
    heads = [(SHORT.get(e["name"], e["name"]), "right") for e in applied]
    table = page.table(("", "left"), ("as it is", "right"), *heads)
    for name, first in applied[0]["metrics"].items():
        before = first["before"]
        cells = [_change(e["metrics"][name]["relative_change"]) for e in applied]
        table.add(
            page.text(figures.label(name) + (" *" if name in MUST_HOLD else "")),
            page.text("–" if before is None else figures.number(before)),
            *(page.text(c, "" if c in ("0", "–") else "yellow") for c in cells),
        )
    table.add_section()
    table.add(
        page.text("* and findings hold"), "", *("yes" if e["held"] else "NO" for e in applied)
    )
    words = [applied[0]["paper"]["before"], *(e["paper"]["after"] for e in applied)]
    table.add(page.text("verdict, paper policy"), *words)
    page.show_table(table)


def _change(change: float | None) -> str:
    if change is None:
        return "–"
    if abs(change) < NO_CHANGE:
        return "0"
    return f"{change:+.1e}" if abs(change) < 1e-3 else f"{change:+.1%}"
