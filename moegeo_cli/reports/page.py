"""A terminal page: it fits width and encoding, shows metrics, and collects reasons for gaps."""

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

MAX_WIDTH = 150  # a longer line is hard to read
WIDE = 110  # at this width or more there is room for whole intervals
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
    """Prints blocks on a console. Text is never read as markup.

    Args:
        console: the console; its width and encoding decide the layout.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = min(console.width, MAX_WIDTH)
        self.wide = self.width >= WIDE
        self.glyphs: Glyphs = UNICODE if console.encoding.startswith("utf") else ASCII
        self.reasons: dict[str, list[str]] = {}

    def show(self, block: RenderableType) -> None:
        """Print a block at the page's width."""
        self.console.print(block, width=self.width, highlight=False, markup=False, emoji=False)

    def line(self, text: str = "", style: str = "", *, indent: int = 0) -> None:
        """Print a paragraph; all its lines have the same indent."""
        self.show(self.paragraph(text, style, indent=indent) if indent else self.text(text, style))

    def paragraph(
        self, text: str | Text, style: str = "", *, indent: int = 0, sign: str = ""
    ) -> Table:
        """A paragraph with a hanging indent, after an optional sign such as a bullet."""
        grid = Table.grid(padding=0)
        grid.add_column(width=indent + (len(sign) + 1 if sign else 0))
        grid.add_column(ratio=1)
        body = self.text(text, style) if isinstance(text, str) else text
        grid.add_row(Text(" " * indent + sign, style), body)
        return grid

    def text(self, text: str, style: str = "") -> Text:
        """The text, in characters that the terminal can show."""
        return Text(self.glyphs.text(text), style)

    def section(self, title: str, explanation: str = "") -> None:
        """Print a heading, with a short explanation of what follows."""
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
        """An empty table. A column may be given as a pair of heading and side."""
        wanted = [c if isinstance(c, Column) else Column(*c) for c in columns]
        return FittingTable(
            wanted,
            [self.text(c.title) for c in wanted],
            None if self.glyphs.plain else box.SIMPLE_HEAD,
        )

    def show_table(self, table: FittingTable) -> None:
        """Print a table, and name the columns that were left out for lack of room."""
        self.show(table)
        if table.left_out:
            words = ", ".join(table.left_out)
            self.line(f"no room at {self.width} columns for: {words}", "dim")

    def gap(self, reason: str | None) -> Text:
        """The dash of a missing value, with the number of its footnote."""
        return Text(f"{self.glyphs.dash}{self.mark(reason)}", "dim")

    def mark(self, reason: str | None) -> str:
        """The number of a reason's footnote. Reasons that differ only in counts share one."""
        words = fold_reason(reason or "no reason was recorded")
        key = pattern(words)
        reasons = self.reasons.setdefault(key, [])
        if words not in reasons:
            reasons.append(words)
        return f"({list(self.reasons).index(key) + 1})"

    def value(self, name: str, metric: Metric | None) -> Text:
        """A metric's value, without its interval."""
        if metric is None:
            return Text("", "dim")
        if metric.value is None:
            return self.gap(metric.reason)
        text = Text(figures.number(metric.value, figures.decimals(name)))
        if metric.reason:  # the value leaves something out: a footnote tells what
            text.append(self.mark(metric.reason), "dim")
        return text

    def estimate(self, name: str, metric: Metric | None, *, whole: bool = False) -> Text:
        """A value with its interval if the page is wide or `whole` is set, else with ±."""
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
        """Experts' load as a heat strip; very low and high loads have colours of their own."""
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
        """Print the reason for every missing value on the page."""
        if not self.reasons:
            return
        self.line()
        for place, reasons in enumerate(self.reasons.values(), 1):
            self.show(self.paragraph(fold(reasons), "dim", sign=f"{self.glyphs.dash}({place})"))
