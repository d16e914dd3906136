"""Tables that fit a terminal: they narrow charts, then leave out columns; numbers are never cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MIN_TEXT = 16  # minimum width of a text column before other columns are left out
UNBOUNDED = 10_000
# The cell of a chart: a function that draws it at a width.
Chart = Callable[[int], Text]


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: its heading.
        side: "left" or "right"; "wrap" for text that may wrap.
        drop: order in which columns are left out if there is no room, 1 first; 0 for never.
        widths: for a column of charts: the possible widths, widest first.
    """

    title: str
    side: str = "right"
    drop: int = 0
    widths: tuple[int, ...] = ()


class FittingTable(Table):
    """A table that chooses its columns when it is printed, by the available width.

    Args:
        columns: all possible columns.
        heads: their headings, in characters that the terminal can show.
        box: its lines; None for none.
    """

    def __init__(self, columns: Sequence[Column], heads: Sequence[Text], box: Box | None) -> None:
        super().__init__(
            box=box, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1)
        )
        self.wanted = tuple(columns)
        self.charts: list[dict[int, Chart]] = []  # for each row: the charts by column
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
        """Add a row. The cell of a chart is a function of its width."""
        self.charts.append({i: cell for i, cell in enumerate(cells) if callable(cell)})
        self.add_row(*("" if callable(cell) else cell for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.fit(console, options.max_width)
        yield from super().__rich_console__(console, options)

    def fit(self, console: Console, width: int) -> None:
        """Draw the charts and choose the columns for a width."""
        if len(self.columns) < len(self.wanted):
            return
        narrower = [[(i, w) for w in column.widths] for i, column in enumerate(self.wanted)]
        for steps in narrower:
            for place, chars in steps:
                self._draw(place, chars)
                if self._needed(console) <= width:
                    break
        order = sorted((c.drop, i) for i, c in enumerate(self.wanted) if c.drop)
        dropped: list[int] = []
        for _, place in order:
            if self._needed(console, dropped) <= width:
                break
            dropped.append(place)
        self.left_out = [self.wanted[i].title for i in sorted(dropped)]
        self.columns = [c for i, c in enumerate(self.columns) if i not in dropped]
        for place, column in enumerate(self.columns):
            column._index = place
        if self._needed(console) > width:  # still too wide: let every cell wrap
            for column in self.columns:
                column.no_wrap = False

    def width_of(self, place: int) -> int:
        """The width at which a column of charts was drawn; known after printing."""
        return self.drawn[range(len(self.wanted))[place]]

    def _draw(self, place: int, chars: int) -> None:
        column, self.drawn[place] = self.columns[place], chars
        column._cells = [
            charts[place](chars) if place in charts else cell
            for charts, cell in zip(self.charts, column._cells, strict=True)
        ]

    def _needed(self, console: Console, without: Sequence[int] = ()) -> int:
        """The width that the columns need if only text columns wrap."""
        options = console.options.update_width(UNBOUNDED)
        total = 0
        kept = [c for i, c in enumerate(self.columns) if i not in without]
        for column in kept:
            found: Measurement = self._measure_column(console, options, column)
            free = not column.no_wrap
            total += min(found.maximum, MIN_TEXT) if free else found.maximum
        lines = len(kept) - 1 if self.box else 0
        return total + lines
