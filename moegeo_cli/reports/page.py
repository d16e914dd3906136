"""A terminal page: its width and signs, how it shows metrics, and the reasons behind its gaps."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from moegeo_cli.records import Metric
from moegeo_cli.reports import figures
from moegeo_cli.reports.charts import ASCII, UNICODE, Glyphs, heat_strip
from moegeo_cli.reports.fitting import Column, FittingTable
from moegeo_cli.reports.folding import fold, fold_reason, pattern

WIDEST = 150  # a line longer than this is hard to follow
WIDE = 110  # from here on there is room for whole intervals
STYLES = {
    "healthy": "bold green",
    "watch": "bold yellow",
    "failing": "bold red",
    "inconclusive": "bold magenta",
    "undetermined": "dim",
    "info": "cyan",
    "resolved": "dim",
}


class Page:
    """Prints blocks to a console; everything printed is plain text, never markup.

    Args:
        console: where to; its width and encoding decide the layout.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = min(console.width, WIDEST)
        self.wide = self.width >= WIDE
        self.glyphs: Glyphs = UNICODE if console.encoding.startswith("utf") else ASCII
        self.reasons: dict[str, list[str]] = {}

    def show(self, block: RenderableType) -> None:
        """Print a block at the page's width."""
        self.console.print(block, width=self.width, highlight=False, markup=False, emoji=False)

    def line(self, text: str = "", style: str = "", *, indent: int = 0) -> None:
        """Print a paragraph, its continuation lines indented like the first."""
        self.show(self.paragraph(text, style, indent=indent) if indent else self.text(text, style))

    def paragraph(
        self, text: str | Text, style: str = "", *, indent: int = 0, sign: str = ""
    ) -> Table:
        """Text that wraps under itself, after an optional sign such as a bullet."""
        grid = Table.grid(padding=0)
        grid.add_column(width=indent + (len(sign) + 1 if sign else 0))
        grid.add_column(ratio=1)
        body = self.text(text, style) if isinstance(text, str) else text
        grid.add_row(Text(" " * indent + sign, style), body)
        return grid

    def text(self, text: str, style: str = "") -> Text:
        """Text in characters that the terminal has."""
        return Text(self.glyphs.text(text), style)

    def section(self, title: str, explanation: str = "") -> None:
        """A heading with a word on how to read what follows."""
        self.line()
        head = self.text(title, "bold")
        if explanation and len(title) + len(explanation) + 3 <= self.width:
            head.append_text(self.text(f"   {explanation}", "dim"))
            self.show(head)
            return
        self.show(head)
        if explanation:
            self.line(explanation, "dim")

    def table(self, *columns: Column | tuple[str, str]) -> FittingTable:
        """A table of columns; a plain one is a heading and its side."""
        asked = [c if isinstance(c, Column) else Column(*c) for c in columns]
        return FittingTable(
            asked,
            [self.text(c.title) for c in asked],
            None if self.glyphs.plain else box.SIMPLE_HEAD,
        )

    def show_table(self, table: FittingTable) -> None:
        """Print a table, and say which columns there was no room for."""
        self.show(table)
        if table.left_out:
            words = ", ".join(table.left_out)
            self.line(f"no room at {self.width} columns for: {words}", "dim")

    def gap(self, reason: str | None) -> Text:
        """The dash of a value that is not there, with the number of its footnote."""
        return Text(f"{self.glyphs.dash}{self.mark(reason)}", "dim")

    def mark(self, reason: str | None) -> str:
        """The number of a reason among the footnotes; those alike but for counts share it."""
        words = fold_reason(reason or "no reason was recorded")
        alike = pattern(words)
        said = self.reasons.setdefault(alike, [])
        if words not in said:
            said.append(words)
        return f"({list(self.reasons).index(alike) + 1})"

    def value(self, name: str, metric: Metric | None) -> Text:
        """A metric's value alone."""
        if metric is None:
            return Text("", "dim")
        if metric.value is None:
            return self.gap(metric.reason)
        text = Text(figures.number(metric.value, figures.decimals(name)))
        if metric.reason:  # it leaves something out: not without a word
            text.append(self.mark(metric.reason), "dim")
        return text

    def estimate(self, name: str, metric: Metric | None, *, whole: bool = False) -> Text:
        """A value with its uncertainty: the interval where there is room or `whole`, else ±."""
        found = self.value(name, metric)
        if metric is None or metric.value is None:
            return found
        places = figures.decimals(name)
        if whole or self.wide:
            ends = figures.interval(metric, places)
            return found.append(f" {ends}", "dim") if ends else found
        half = figures.longer_side(metric, places)
        return found.append(self.glyphs.text(f" ±{half}"), "dim") if half else found

    def strip(self, load: tuple[float | None, ...] | None, width: int) -> Text:
        """Experts' load as a heat strip; what is off in it stands out in colour too."""
        if load is None:
            return self.gap("no load per expert was recorded")
        signs, ratios = heat_strip(load, self.glyphs, width=width)
        strip = Text()
        for sign, ratio in zip(signs, ratios, strict=True):
            low = ratio is not None and ratio < 0.05
            high = ratio is not None and ratio >= 2
            strip.append(sign, "red" if low else "yellow" if high else "cyan")
        return strip

    def footnotes(self) -> None:
        """The reason of every gap on the page."""
        if not self.reasons:
            return
        self.line()
        for place, said in enumerate(self.reasons.values(), 1):
            self.show(self.paragraph(fold(said), "dim", sign=f"{self.glyphs.dash}({place})"))
