"""Plots of a record's metrics by matplotlib, for notebooks and papers."""

from __future__ import annotations

from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.explanations.metrics import specs
from moegeo_cli.reports.frames import to_frame


def _axes(ax: Any) -> Any:
    """The given axes, or new ones.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib", found="not installed", hint="pip install 'moegeo[plots]'"
        ) from error
    return pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")[1]  # a notebook shows it


def plot_metric(record: Any, metric: str, over: str = "layer", ax: Any = None) -> Any:
    """Plot a metric with its interval, over the layers of the newest checkpoint or over steps.

    Args:
        record: the result of a command.
        metric: the metric's name in the frame `metrics`.
        over: "layer" or "step".
        ax: matplotlib axes; None for a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: the record has no such metric, or matplotlib is not installed.
    """
    if over not in ("layer", "step"):
        raise UsageError("a plot is over layer or step", found=repr(over))
    rows = to_frame(record, "metrics")
    known = rows[rows["metric"] == metric] if "metric" in rows else rows
    if over not in known or known.empty:
        names = ", ".join(sorted(set(rows.get("metric", ())))[:40])
        raise UsageError(f"there is no {metric!r} over {over} in this record", found=names)
    if over == "layer":
        known = known[known["layer"].notna()]
        if "step" in known and known["step"].notna().any():
            known = known[known["step"] == known["step"].max()]
    else:
        known = known[known["layer"].isna()] if "layer" in known else known
    known = known.dropna(subset=["value" if "value" in known else "difference", over])
    if known.empty:
        raise UsageError(f"{metric!r} was not measured over {over}", found="no value")
    known = known.sort_values(over)
    value = known["value" if "value" in known else "difference"].astype(float)
    axes = _axes(ax)
    place = known[over].astype(float)
    axes.plot(place, value, marker="o", markersize=3)
    low, high = (known[end].astype(float).fillna(value) for end in ("ci_low", "ci_high"))
    axes.fill_between(place, low, high, alpha=0.2, linewidth=0)
    spec = specs().get(metric)
    axes.set_xlabel(over)
    axes.set_ylabel(spec.label if spec else metric.replace("_", " "))
    return axes


def plot_load(record: Any, ax: Any = None) -> Any:
    """Plot the load per layer and expert of the newest checkpoint; 1 is the fair share.

    Args:
        record: a run.
        ax: matplotlib axes; None for a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: the record holds no loads, or matplotlib is not installed.
    """
    newest = getattr(record, "newest", None)
    layers = [x for x in getattr(newest, "layers", ()) if getattr(x, "load", None)]
    if not layers:
        raise UsageError("this record holds no loads", found=type(record).__name__)
    widest = max(x.experts for x in layers)
    grid = [
        [(share or 0.0) * x.choices for share in x.load] + [float("nan")] * (widest - x.experts)
        for x in layers
    ]
    axes = _axes(ax)
    drawn = axes.imshow(grid, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="none")
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_yticks(range(len(layers)), [str(x.layer) for x in layers])
    axes.figure.colorbar(drawn, ax=axes, label="load, × the fair share")
    return axes
