"""Methods of every record for notebooks: text, HTML, pandas frames and plots.

The code behind them is in reports/ and is imported on demand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moegeo_cli.registry import load

if TYPE_CHECKING:
    import pandas as pd


class Displayable:
    """Base class of records that can be printed, shown in a notebook, and turned into frames."""

    __slots__ = ()

    def __str__(self) -> str:
        """The first screen, as the command prints it."""
        return str(load("moegeo_cli.reports:render_screen")(self)).rstrip("\n")

    def __repr__(self) -> str:
        run: Any = getattr(self, "run", None)
        name = run.get("name") if isinstance(run, dict) else getattr(self, "name", None)
        return f"<{type(self).__name__}{f' of {name}' if name else ''}; print it to read it>"

    def _repr_html_(self) -> str:
        """The first screen, as a notebook shows it."""
        return str(load("moegeo_cli.reports.notebook:screen_html")(self))

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables by name; `metrics` has one row for each number."""
        found: dict[str, pd.DataFrame] = load("moegeo_cli.reports.frames:to_frames")(self)
        return found

    def frame(self, table: str = "metrics") -> pd.DataFrame:
        """One table as a pandas frame.

        Args:
            table: its name, a key of `frames()`.

        Raises:
            UsageError: there is no such table.
        """
        found: pd.DataFrame = load("moegeo_cli.reports.frames:to_frame")(self, table)
        return found

    def plot(self, metric: str, *, over: str = "layer", ax: Any = None) -> Any:
        """Plot a metric with its interval (needs matplotlib: moegeo[plots]).

        Args:
            metric: its name in the table `metrics`.
            over: "layer" (of the newest checkpoint) or "step".
            ax: matplotlib axes to draw on; None for a new figure.

        Returns:
            The axes.

        Raises:
            UsageError: the metric is not there, or matplotlib is missing.
        """
        return load("moegeo_cli.reports.plots:plot_metric")(self, metric, over, ax)

    def plot_load(self, *, ax: Any = None) -> Any:
        """Plot the load of the newest checkpoint, layers × experts; 1 is a fair share.

        Args:
            ax: matplotlib axes to draw on; None for a new figure.

        Returns:
            The axes.

        Raises:
            UsageError: the record holds no loads, or matplotlib is missing.
        """
        return load("moegeo_cli.reports.plots:plot_load")(self, ax)
