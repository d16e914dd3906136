"""Labels, units and digits of metrics, the same in every report."""

from __future__ import annotations

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import Metric, layer_name

__all__ = [
    "count", "decimals", "interval", "label", "layer_name", "longer_side", "number",
    "plural", "step_name", "unit",
]  # fmt: skip
_WORST = "_worst"
# Labels of metrics that have no entry in metrics.toml.
_LABELS = {"loss": "loss", "fsi_rate": "FSI change", "fsi_rate_share": "share of its bound"}


def label(name: str) -> str:
    """The label of a metric: "collapse, worst router" for `collapse_worst`."""
    base = name.removesuffix(_WORST)
    spec = specs().get(base)
    text = spec.label if spec else _LABELS.get(base, base.replace("_", " "))
    return f"{text}, worst router" if name.endswith(_WORST) else text


def unit(name: str, metric: Metric | None = None) -> str:
    """The unit of a metric; "" for a pure number."""
    spec = specs().get(name.removesuffix(_WORST))
    found = metric.unit if metric is not None else spec.unit if spec else ""
    return "" if found == "1" else found


def decimals(name: str) -> int:
    """The number of decimals of a metric in metrics.toml; 3 by default."""
    spec = specs().get(name.removesuffix(_WORST))
    return spec.decimals if spec else 3


def number(value: float, places: int = 3) -> str:
    """A number as text of readable length. A number other than 0 is never shown as 0."""
    size = abs(value)
    if value == 0:
        return f"{0:.{min(places, 3)}f}"
    if places == 0:
        return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    if places > 3 or size < 0.5 * 10**-places or size >= 1e5:
        return f"{value:.3g}"
    kept = places - (size >= 10) - (size >= 100) - (size >= 1000)
    return f"{value:,.{max(kept, 0)}f}"


def interval(metric: Metric, places: int = 3) -> str:
    """The interval as "[low, high]"; "" if there is none."""
    if metric.value is None or metric.ci_low is None or metric.ci_high is None:
        return ""
    return f"[{number(metric.ci_low, places)}, {number(metric.ci_high, places)}]"


def longer_side(metric: Metric, places: int = 3) -> str:
    """The longer side of the interval, for tables without room for both ends; "" for none."""
    if metric.value is None or metric.ci_low is None or metric.ci_high is None:
        return ""
    return number(max(metric.ci_high - metric.value, metric.value - metric.ci_low), places)


def count(value: float | int | None) -> str:
    """A count with thousands separators; "?" if not known."""
    return "?" if value is None else f"{value:,.0f}"


def step_name(step: int | None, path: str = "") -> str:
    """A checkpoint's step as "step 100", or its path if it has no step."""
    if step is not None:
        return f"step {step:,}"
    return path if path not in ("", ".") else "checkpoint"


def plural(number: int, noun: str) -> str:
    """A count with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
