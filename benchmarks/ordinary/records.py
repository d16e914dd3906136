"""The committed records of the runs: only the fields that rules read.

`records.json.gz` holds a run's record for each name, with its final held-out loss. Judging starts
from it, so severities can be tried without training or replaying anything.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ordinary.plan import Run, plan_runs
from moegeo_cli.records import CheckpointRecord, LayerRecord, RunRecord, from_dict, to_dict

RESULTS = Path(__file__).parent / "results"
MAX_TOKENS = 8192  # what docs/how-to/ci.md takes in a training
KEPT_METRICS = (
    "fsi", "collapse", "effective_experts", "information", "information_dispatch", "dead_experts",
    "near_ties", "near_ties_centred", "logit_max", "bias_spread",
)  # fmt: skip
KEPT_OF_RUN = ("fhs", "heterogeneity_trace")
KEPT_OF_LOG = ("step", "loss", "nonfinite", "learning_rate")
DIGITS = 6


def measure(run: Run, work: Path) -> dict[str, Any]:
    """A run's slim record, from its folder in `work`; kept there once it is measured."""
    path = work / "records" / f"{run.name}.json"
    if not path.exists():
        from moegeo_cli import analyze

        with tempfile.TemporaryDirectory() as cache:
            record = analyze(work / run.name, max_tokens=MAX_TOKENS, device="cpu", cache_dir=cache)
        path.parent.mkdir(exist_ok=True)
        final = json.loads((work / run.name / "final.json").read_text())["loss"]
        text = json.dumps({"loss": _round(final), "record": _round(to_dict(slim(record)))})
        beside = path.with_suffix(".partial")
        beside.write_text(text)
        beside.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def slim(record: RunRecord) -> RunRecord:
    """What the verdict reads of a record."""
    log = [{k: e[k] for k in KEPT_OF_LOG if k in e} for e in record.run.get("log") or ()]
    return dataclasses.replace(
        record,
        versions={},
        verdict=None,
        interventions=(),
        run={**record.run, "log": [e for e in log if len(e) > 1]},
        checkpoints=tuple(_slim_checkpoint(c) for c in record.checkpoints),
        dynamics=tuple(
            {**m, "metrics": {}, "layers": [{**x, "metrics": {}} for x in m["layers"]]}
            for m in record.dynamics
        ),
    )


def _slim_checkpoint(checkpoint: CheckpointRecord) -> CheckpointRecord:
    return dataclasses.replace(
        checkpoint,
        fingerprint="",
        measurements=None,
        replay={},
        fisher={},
        verdict=None,
        metrics={k: v for k, v in checkpoint.metrics.items() if k in KEPT_OF_RUN},
        layers=tuple(_slim_layer(x) for x in checkpoint.layers),
    )


def _slim_layer(layer: LayerRecord) -> LayerRecord:
    return dataclasses.replace(
        layer,
        metrics={k: v for k, v in layer.metrics.items() if k in KEPT_METRICS},
        fisher={},
        domain_load={},
        load=None,
        mean_probability=None,
    )


def collect(work: Path) -> None:
    """Write records.json.gz of the runs that are measured."""
    found = {}
    for run in plan_runs():
        path = work / "records" / f"{run.name}.json"
        if path.exists():
            found[run.name] = json.loads(path.read_text())
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(json.dumps(found, separators=(",", ":"), sort_keys=True).encode())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "records.json.gz").write_bytes(buffer.getvalue())
    print(f"records.json.gz: {len(found)} runs, {len(buffer.getvalue()) / 1024:.0f} KiB")


def read_records() -> dict[str, tuple[float, RunRecord]]:
    """The final loss and the record of each run, by name."""
    text = gzip.decompress((RESULTS / "records.json.gz").read_bytes())
    rows: Mapping[str, Any] = json.loads(text)
    return {name: (row["loss"], from_dict(RunRecord, row["record"])) for name, row in rows.items()}


def _round(value: Any) -> Any:
    """Numbers with six digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {k: _round(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_round(v) for v in value]
    return value
