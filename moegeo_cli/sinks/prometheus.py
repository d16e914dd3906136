"""Prometheus' text format: a file that the node exporter's textfile collector reads.

The file holds only the newest checkpoint of each run, because the collector adds the time itself
and accepts no history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moegeo_cli.errors import OutputError
from moegeo_cli.scalars import Point, describe
from moegeo_cli.store.files import check_writable, write_atomic

DEFAULT_PLACE = None
EXTRA = "prometheus"
ALL_CHECKPOINTS = False
SYNTAX = "prometheus:FILE"
STEP = "moegeo_step"
Gauges = dict[str, dict[str, float]]  # by name, then by run


def prepare(where: str) -> None:
    """Check that the library is installed, and that the file (if it exists) is one of moegeo's.

    Raises:
        OutputError: the file holds something else or cannot be written.
    """
    _read(Path(where))
    check_writable(Path(where))


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Replace the run's point by its newest one; other runs stay."""
    path = Path(where)
    gauges = _read(path)
    if not points or gauges.get(STEP, {}).get(run) == points[-1].step:
        return 0
    for values in gauges.values():
        values.pop(run, None)
    newest = points[-1]
    for name, value in {"moegeo/step": float(newest.step), **newest.values}.items():
        gauges.setdefault(name.replace("/", "_"), {})[run] = value
    write_atomic(path, _text(gauges))
    return 1


def _read(path: Path) -> Gauges:
    from prometheus_client.parser import text_string_to_metric_families

    gauges: Gauges = {}
    if not path.is_file():
        return gauges
    try:
        for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
            for sample in family.samples:
                gauges.setdefault(sample.name, {})[sample.labels["run"]] = sample.value
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"{path} is not a Prometheus file that --log wrote", found=str(error)[:200],
            hint="choose another file: one of its own, ending in .prom",
        ) from error  # fmt: skip
    if any(not re.fullmatch(r"moegeo_\w+", name) for name in gauges):
        raise OutputError(
            f"{path} holds metrics of others", found=", ".join(sorted(gauges)[:5]),
            hint="choose another file: one of its own, ending in .prom",
        )  # fmt: skip
    return gauges


def _text(gauges: Mapping[str, Mapping[str, float]]) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily

    class GaugeCollector:
        def collect(self) -> Iterator[GaugeMetricFamily]:
            for name, values in sorted(gauges.items()):
                own = "moegeo/" + name.removeprefix("moegeo_")
                about = "step of the newest checkpoint" if name == STEP else describe(own)
                family = GaugeMetricFamily(name, about, labels=["run"])
                for run, value in sorted(values.items()):
                    family.add_metric([run], value)
                if values:
                    yield family

    registry = CollectorRegistry()
    registry.register(GaugeCollector())
    text: bytes = generate_latest(registry)
    return text
