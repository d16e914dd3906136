"""Tables that fit a terminal: they narrow charts and leave out columns, and never cut a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

NARROWEST_TEXT = 16  # characters that a column of text is left with before others go
UNBOUNDED = 10_000
# A cell of a chart: drawn at the width that there is.
Chart = Callable[[int], Text]


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: its heading.
        side: "left" or "right"; "wrap" for text that may continue on a further line.
        goes: the place among those that are left out where there is no room, 1 the first; 0 never.
        widths: of a column of charts, those that it can be drawn at, the widest first.
    """

    title: str
    side: str = "right"
    goes: int = 0
    widths: tuple[int, ...] = ()


class FittingTable(Table):
    """A table that chooses its columns when it learns how wide it may be.

    Args:
        columns: all that it may have.
        heads: their headings in the terminal's characters.
        box: its lines; None for none.
    """

    def __init__(self, columns: Sequence[Column], heads: Sequence[Text], box: Box | None) -> None:
        super().__init__(
            box=box, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1)
        )
        self.asked = tuple(columns)
        self.charts: list[dict[int, Chart]] = []  # by row: column, how to draw its cell
        self.drawn: dict[int, int] = {}  # widths of the charts, by column
        self.left_out: list[str] = []
        for column, head in zip(columns, heads, strict=True):
            wraps = column.side == "wrap"
            self.add_column(
                head,
                justify="right" if column.side == "right" else "left",
                no_wrap=not wraps,
                overflow="fold",
            )

    def add(self, *cells: Text | str | Chart) -> None:
        """Add a row; the cell of a chart is a function of its width."""
        self.charts.append({i: cell for i, cell in enumerate(cells) if callable(cell)})
        self.add_row(*("" if callable(cell) else cell for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.fit(console, options.max_width)
        yield from super().__rich_console__(console, options)

    def fit(self, console: Console, width: int) -> None:
        """Draw the charts and choose the columns for a width."""
        if len(self.columns) < len(self.asked):
            return
        narrower = [[(i, w) for w in column.widths] for i, column in enumerate(self.asked)]
        for steps in narrower:
            for place, chars in steps:
                self._draw(place, chars)
                if self._needed(console) <= width:
                    break
        order = sorted((c.goes, i) for i, c in enumerate(self.asked) if c.goes)
        gone: list[int] = []
        for _, place in order:
            if self._needed(console, gone) <= width:
                break
            gone.append(place)
        self.left_out = [self.asked[i].title for i in sorted(gone)]
        self.columns = [c for i, c in enumerate(self.columns) if i not in gone]
        for place, column in enumerate(self.columns):
            column._index = place
        if self._needed(console) > width:  # still too wide: every cell goes on below itself
            for column in self.columns:
                column.no_wrap = False

    def width_of(self, place: int) -> int:
        """Characters of a column of charts, once the table was shown."""
        return self.drawn[range(len(self.asked))[place]]

    def _draw(self, place: int, chars: int) -> None:
        column, self.drawn[place] = self.columns[place], chars
        column._cells = [
            charts[place](chars) if place in charts else cell
            for charts, cell in zip(self.charts, column._cells, strict=True)
        ]

    def _needed(self, console: Console, without: Sequence[int] = ()) -> int:
        """Characters that the columns take when only text wraps."""
        options = console.options.update_width(UNBOUNDED)
        total = 0
        kept = [c for i, c in enumerate(self.columns) if i not in without]
        for column in kept:
            found: Measurement = self._measure_column(console, options, column)
            free = not column.no_wrap
            total += min(found.maximum, NARROWEST_TEXT) if free else found.maximum
        lines = len(kept) - 1 if self.box else 0
        return total + lines
