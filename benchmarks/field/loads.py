"""Read tables of expert counts, and apply the verdict's rule on loads to each (model, text).

A table has a row a layer with the columns model, experts, top_k, layer, text, breadth, tokens and
counts (of every expert, separated by `;`). `loads.csv.gz` holds 2,127 rows of published counts with
their source and licence.

Legend: E experts, K chosen per token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moegeo_cli.errors import UsageError
from moegeo_cli.verdict.known_loads import (
    MIXTURE,
    NARROW,
    LoadReading,
    effective_experts,
    even_experts,
    read_load,
    standing_words,
)

SHIPPED = Path(__file__).parent / "loads.csv.gz"
# Looked at once the rules were fixed; no limit or percentile comes from them.
HELD_BACK = ("Granite-3.0-1B-A400M", "Qwen3-30B-A3B (IQ3)")
DESIGN_EFFECT = 40.0  # of real text: 6 to 246 was seen, median 83 in the largest set
COLUMNS = ("model", "experts", "top_k", "layer", "text", "breadth", "tokens", "counts")
ORDER = {None: -1, "info": 0, "watch": 1, "failing": 2}


def read_loads(path: Path = SHIPPED) -> pd.DataFrame:
    """A table of counts.

    Raises:
        UsageError: it cannot be read, or a row is no load.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no table of loads", found=str(error)[:200]) from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UsageError(f"{path} lacks columns", found=f"no {', '.join(missing)}")
    counts = []
    for place, row in enumerate(table.itertuples(), 2):
        try:
            own = [float(c) for c in str(row.counts).split(";")]
        except ValueError as error:
            raise UsageError(f"{path}: line {place} has no counts", found=str(error)) from error
        if len(own) != int(row.experts) or min(own) < 0 or not sum(own):
            raise UsageError(
                f"{path}: line {place} is no load of {row.experts} experts",
                found=f"{len(own)} counts with sum {sum(own):g}",
            )
        counts.append(own)
    return table.assign(counts=counts)


def read_row(row: Any) -> LoadReading:
    """What the rule says of one layer's counts."""
    effective = effective_experts(row.counts)
    return read_load(effective, even_of(row), int(row.experts), int(row.top_k), _breadth(row))


def _breadth(row: Any) -> str:
    return MIXTURE if row.breadth == MIXTURE else NARROW


def even_of(row: Any) -> float:
    """Effective experts that even routing shows on as many tokens, at the usual design effect."""
    return even_experts(int(row.experts), float(row.tokens) * int(row.top_k), DESIGN_EFFECT)


def judge_sets(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the rule says of every (model, text): the worst of its layers, and why."""
    from moegeo_cli.geometry.simplex import distance, distance_reachable

    found = []
    for (model, text), own in table.groupby(["model", "text"], sort=True):
        readings = [(row, read_row(row)) for row in own.itertuples()]
        row, reading = max(
            readings, key=lambda r: (ORDER[r[1].severity], -(r[1].reach or 0.0), -int(r[0].layer))
        )
        over = [int(r.layer) for r, x in readings if x.severity in ("watch", "failing")]
        told = [r for r in readings if r[1].severity is not None]
        experts, top_k = int(row.experts), int(row.top_k)
        scale = distance_reachable(experts, top_k)
        uniform_E = np.full(experts, 1.0 / experts)
        loads_LE = np.array([r.counts for r, _ in readings])
        loads_LE /= loads_LE.sum(axis=1, keepdims=True)
        collapses = distance(loads_LE, uniform_E) / scale
        least = min(effective_experts(r.counts) for r, _ in readings)
        place = "" if reading.standing is None else (
            f"; {standing_words(reading.standing, _breadth(row))}"
        )  # fmt: skip
        words = f"layer {row.layer}: {least:.1f} of {experts} experts carry the load; "
        found.append(
            {
                "model": model,
                "text": text,
                "breadth": str(row.breadth),
                "severity": reading.severity or "info",
                "collapse": round(float(collapses.max()), 4),
                "effective_experts": round(least, 3),
                "layers": len(own),
                "layers_over": sorted(over),
                "told": len(told),
                "reasons": [f"{words if told else ''}{reading.reason}{place}"],
            }
        )
    return found
