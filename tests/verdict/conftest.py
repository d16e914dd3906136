"""Runs made of records alone: what a rule sees is all that a test has to write."""

from __future__ import annotations

from typing import Any

import pytest

from moegeo_cli.records import CheckpointRecord, Coverage, LayerRecord, Metric, RunRecord


def metric(value: float | None, width: float = 0.02, **more: Any) -> Metric:
    """A value in the middle of an interval of this width."""
    if value is None:
        return Metric(None, **more)
    return Metric(value, value - width / 2, value + width / 2, 64, **more)


HEALTHY = {
    "fsi": 0.3, "collapse": 0.05, "information": 0.2, "information_dispatch": 0.3,
    "logit_max": 5.0, "near_ties": 0.004,
}  # fmt: skip


def layer(index: int = 0, **changes: Any) -> LayerRecord:
    """A healthy router of eight experts, two chosen; metrics and fields may be changed."""
    fields = {"state", "dead", "dead_in_all_domains", "experts", "top_k"}
    own = {k: changes.pop(k) for k in list(changes) if k in fields}
    metrics = {name: metric(value) for name, value in HEALTHY.items()}
    metrics["dead_experts"] = metric(float(len(own.get("dead", ()))), 0.0)
    metrics |= {k: v if isinstance(v, Metric) else metric(v) for k, v in changes.items()}
    shape = {"experts": 8, "top_k": 2, **own}
    return LayerRecord(index, f"model.layers.{index}.mlp.gate", scoring="softmax",
                       metrics=metrics, **shape)  # fmt: skip


def checkpoint(step: int, *layers: LayerRecord, **changes: Any) -> CheckpointRecord:
    """A checkpoint of these routers; `fhs` and other run-level metrics by name."""
    rows = layers or (layer(0), layer(1))
    coverage = changes.pop("coverage", Coverage(len(rows), len(rows)))
    progress = {"step": step, "tokens": None, "fraction": changes.pop("fraction", None)}
    metrics = {k: v if isinstance(v, Metric) else metric(v) for k, v in changes.items()}
    return CheckpointRecord(
        step, f"checkpoint-{step}", "f" * 64, coverage, metric(2.0), metrics, rows,
        progress=progress,
    )  # fmt: skip


def run_of(*checkpoints: CheckpointRecord, **about: Any) -> RunRecord:
    """A run of these checkpoints; `run` and `probe` entries by name."""
    probe = {"sequences": about.pop("sequences", 64)}
    told = {"framework": "transformers", "model_type": "qwen3_moe", "scoring": "softmax", **about}
    return RunRecord("complete", {}, told, probe, {}, {}, checkpoints or (checkpoint(100),))


@pytest.fixture
def healthy() -> RunRecord:
    return run_of()
