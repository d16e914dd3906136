"""Runs made of records alone: what a rule sees is all that a test has to write."""

from __future__ import annotations

from typing import Any

import pytest

from moegeo_cli.records import (
    CheckpointRecord,
    Coverage,
    Finding,
    LayerRecord,
    Metric,
    RunRecord,
    Verdict,
)
from moegeo_cli.verdict import judge


def metric(value: float | None, width: float = 0.02, **more: Any) -> Metric:
    """A value in the middle of an interval of this width."""
    if value is None:
        return Metric(None, **more)
    return Metric(value, value - width / 2, value + width / 2, 64, **more)


DOMAINS = ("code", "languages", "mathematics", "prose")
HEALTHY = {
    "fsi": 0.3, "collapse": 0.05, "information": 0.2, "information_dispatch": 0.3,
    "logit_max": 5.0, "near_ties": 0.004, "effective_experts": 7.8,
}  # fmt: skip


def layer(index: int = 0, **changes: Any) -> LayerRecord:
    """A healthy router of eight experts, two chosen; metrics and fields may be changed."""
    fields = {
        "state", "dead", "dead_in_all_domains", "experts", "top_k", "fisher_trace",
        "experts_identical",
    }  # fmt: skip
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
    more = {k: changes.pop(k) for k in ("loss", "domain_loss") if k in changes}
    progress = {"step": step, "tokens": None, "fraction": changes.pop("fraction", None)}
    metrics = {k: v if isinstance(v, Metric) else metric(v) for k, v in changes.items()}
    return CheckpointRecord(
        step, f"checkpoint-{step}", "f" * 64, coverage, more.get("loss", metric(2.0)), metrics,
        rows, progress=progress, domain_loss=more.get("domain_loss", {}),
    )  # fmt: skip


def run_of(*checkpoints: CheckpointRecord, **about: Any) -> RunRecord:
    """A run of these checkpoints; `run`, `probe` and `settings` entries by name."""
    probe = {"sequences": about.pop("sequences", 64), "domains": dict.fromkeys(DOMAINS, 16)}
    probe |= about.pop("probe", {})
    settings = {"fisher": {"kind": "empirical", "unit": "position"}}
    dynamics = about.pop("dynamics", ())
    told = {"framework": "transformers", "model_type": "qwen3_moe", "scoring": "softmax", **about}
    return RunRecord(
        "complete", {}, told, probe, settings, {}, checkpoints or (checkpoint(100),),
        dynamics=tuple(dynamics),
    )  # fmt: skip


@pytest.fixture
def healthy() -> RunRecord:
    return run_of()


def verdict_of(run: RunRecord, **options: Any) -> Verdict:
    verdict = judge(run, **options).verdict
    assert verdict is not None
    return verdict


def find(run: RunRecord, name: str, **options: Any) -> Finding | None:
    return next(
        (f for f in verdict_of(run, **options).findings if f.name == name and f.state == "active"),
        None,
    )


def log(*losses: float | None) -> list[dict[str, Any]]:
    return [{"step": i, "loss": v} for i, v in enumerate(losses)]
