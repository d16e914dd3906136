"""Line charts over checkpoints or layers as SVG paths, with bands for intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from moegeo_cli.records import Metric
from moegeo_cli.reports import figures

WIDTH, HEIGHT = 320.0, 132.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 8.0, 20.0
MAX_DOTS = 32  # points with a dot and a label each; with more, a table is easier to read
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one line, in order of x."""

    label: str
    metrics: Sequence[Metric | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A drawn line: SVG paths of the line and its band, and dots."""

    label: str
    path: str
    band: str
    dots: Sequence[tuple[str, str, str]]  # x, y, label


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart, with a description for screen readers."""

    name: str
    title: str
    description: str
    lines: Sequence[Line]
    high: str
    low: str
    first: str
    last: str
    width: float = WIDTH
    height: float = HEIGHT
    bare: bool = False
    legend: Sequence[str] = field(default_factory=tuple)


def chart(
    name: str, title: str, metric: str, xs: Sequence[float], names: Sequence[str],
    series: Sequence[Series], *, bare: bool = False,
) -> Chart | None:  # fmt: skip
    """Draw lines on one scale; None if no value is known.

    Args:
        name: id of the chart.
        title: title of the chart.
        metric: the metric's name, for the number of decimals.
        xs: x of the values, in order.
        names: name of each x.
        series: the lines.
        bare: draw a small chart without axes.
    """
    ends = [e for s in series for m in s.metrics if m is not None for e in _ends(m)]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    if low == high:
        around = 0.5 * (abs(low) or 1)  # a count of 0 has no axis below 0
        low, high = (low - around if low else 0.0), high + around
    width, height = (120.0, 32.0) if bare else (WIDTH, HEIGHT)
    left, right, top, bottom = (2.0, 2.0, 3.0, 3.0) if bare else (LEFT, RIGHT, TOP, BOTTOM)
    span = (xs[-1] - xs[0]) or 1.0

    def place(x: float, value: float) -> Point:
        along = (x - xs[0]) / span if len(xs) > 1 else 0.5
        return (
            left + along * (width - left - right),
            top + (high - value) / (high - low) * (height - top - bottom),
        )

    places = figures.decimals(metric)
    lines = [_line(s, metric, xs, names, place, bare=bare) for s in series]
    words = "; ".join(_words(s, places, names) for s in series)
    return Chart(
        name, title, words, lines, figures.number(high, places), figures.number(low, places),
        names[0], names[-1] if len(names) > 1 else "", width, height, bare,
        [s.label for s in series] if len(series) > 1 else (),
    )  # fmt: skip


def _ends(metric: Metric) -> Iterator[float]:
    for value in (metric.value, metric.ci_low, metric.ci_high):
        if value is not None and metric.value is not None:
            yield value


def _line(
    series: Series, metric: str, xs: Sequence[float], names: Sequence[str], place: object,
    *, bare: bool,
) -> Line:  # fmt: skip
    assert callable(place)
    path, band, dots = [], [], []
    for run in _runs(series.metrics):
        known = [(xs[i], m) for i, m in run]
        path.append("M" + "L".join(_coordinates(place(x, m.value)) for x, m in known))
        with_ends = [(x, m) for x, m in known if m.ci_low is not None and m.ci_high is not None]
        if len(with_ends) > 1 and not bare:
            upper = [place(x, m.ci_high) for x, m in with_ends]
            lower = [place(x, m.ci_low) for x, m in reversed(with_ends)]
            band.append("M" + "L".join(_coordinates(p) for p in (*upper, *lower)) + "Z")
        if not bare and len(xs) <= MAX_DOTS:
            for i, m in run:
                x, y = _coordinates(place(xs[i], m.value)).split(" ")
                dots.append((x, y, f"{names[i]}: {_value(m, figures.decimals(metric))}"))
    return Line(series.label, "".join(path), "".join(band), dots)


def _runs(metrics: Sequence[Metric | None]) -> Iterator[list[tuple[int, Metric]]]:
    """Stretches of consecutive values that are known, each with its position."""
    run: list[tuple[int, Metric]] = []
    for i, metric in enumerate(metrics):
        if metric is not None and metric.value is not None:
            run.append((i, metric))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _coordinates(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _value(metric: Metric, places: int) -> str:
    assert metric.value is not None
    ends = figures.interval(metric, places)
    return figures.number(metric.value, places) + (f" {ends}" if ends else "")


def _words(series: Series, places: int, names: Sequence[str]) -> str:
    known = [(i, m) for i, m in enumerate(series.metrics) if m is not None and m.value is not None]
    if not known:
        return f"{series.label}: not measured"
    (first, a), (last, b) = known[0], known[-1]
    words = f"{series.label}: {_value(a, places)} at {names[first]}"
    return words if first == last else f"{words}, {_value(b, places)} at {names[last]}"
