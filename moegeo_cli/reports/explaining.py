"""The terminal output of `moegeo explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from moegeo_cli.explanations.lookup import Explanation
from moegeo_cli.reports.page import Page


def print_explanation(found: Explanation, console: Console) -> None:
    """Print an explanation."""
    page = Page(console)
    page.show(Text(page.glyphs.text(found.title), "bold"))
    page.line(found.headline)
    page.line()
    widest = max(len(head) for head, _ in found.parts)
    for head, words in found.parts:
        page.show(page.paragraph(words, sign=f"{head:<{widest}} ", indent=2))


def print_names(names: Mapping[str, Sequence[str]], console: Console) -> None:
    """Print every name that `moegeo explain` knows."""
    page = Page(console)
    page.line("moegeo explain NAME explains what it is, why it matters and what to do.")
    for kind, found in names.items():
        page.section(kind.upper())
        if kind == "findings":
            for name in found:
                page.line(name, indent=2)
        else:
            page.line(", ".join(found), indent=2)
