"""A run as a collapse leaves it: three checkpoints, gaps with reasons, and hostile strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import (
    Check,
    CheckpointRecord,
    ConfigKey,
    Coverage,
    Evidence,
    Finding,
    Intervention,
    LayerRecord,
    Metric,
    RunRecord,
    Threshold,
    Verdict,
)
from moegeo_cli.records.comparison import (
    ComparisonRecord,
    Difference,
    LayerPair,
    MatchedPair,
    RunSummary,
    Unmatched,
)

GOLDEN = Path(__file__).parent / "golden"
# Every kind of text that some place would take for more than text.
NASTY = (
    "evil\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] a|b <b>&amp; :smile: ::error::x%0A "
    "`code` \u202eabc\nline2 =cmd()"
)
NO_BASELINE = "no baseline was asked for"


def metric(name: str, value: float | None, width: float = 0.02, **more: Any) -> Metric:
    """A metric as measurement makes it: interval, unit and direction from the catalogue."""
    spec = specs().get(name.removesuffix("_worst"))
    known = value is not None and width > 0
    return Metric(
        value,
        round(value - width / 2, 6) if known and value is not None else None,
        round(value + width / 2, 6) if known and value is not None else None,
        n=64,
        unit=spec.unit if spec else "nats",
        higher_is_better=spec.higher_is_better if spec else False,
        **more,
    )


def layer_record(
    index: int, load: Sequence[float], collapse: float, fhs: float | None
) -> LayerRecord:
    """A router with this load."""
    experts = len(load)
    dead = tuple(e for e, share in enumerate(load) if share < 0.05 / experts)
    values = {
        "fsi": 0.31 + collapse / 4,
        "collapse": collapse,
        "dispersion": 0.28 - collapse / 4,
        "information": 0.21,
        "entropy_load": 1 - collapse / 2,
        "dead_experts": float(len(dead)),
        "near_ties": 0.0042,
        "margin": 0.731,
        "logit_max": 11.25,
        "heterogeneity": 3.4123e-5,
        "heterogeneity_trace": 0.62,
    }
    metrics = {n: metric(n, v, 0.0 if n == "dead_experts" else 0.031) for n, v in values.items()}
    metrics["collapse"] = dataclasses.replace(metrics["collapse"], null_value=0.018)
    few = "3 experts with fewer than 30 tokens"
    metrics["heterogeneity_conditional"] = metric(
        "heterogeneity_conditional", None if dead else 0.4, reason=few if dead else None
    )
    metrics["fhs"] = metric("fhs", fhs, 0.6, reason=None if fhs else NO_BASELINE)
    return LayerRecord(
        layer=index,
        router=f"model.layers.{index}.mlp.gate" if index != 1 else NASTY,
        experts=experts,
        top_k=2,
        scoring="softmax",
        metrics=metrics,
        load=tuple(load),
        mean_probability=tuple(load),
        fisher_trace=tuple(None if e in dead else 1e-6 * (1 + e) for e in range(experts)),
        fisher={"categorical": {"token": {"heterogeneity": metric("heterogeneity", 2e-7, 1e-8)}}},
        dead=dead,
        dead_in_all_domains=dead,
        domain_load={"code": tuple(load)},
    )


def checkpoint(
    step: int | None, collapse: float, fhs: float | None, verdict: Verdict | None
) -> CheckpointRecord:
    """A checkpoint with a sound router 0 and a router 1 that is as collapsed as asked."""
    even = [0.11, 0.14, 0.13, 0.12, 0.15, 0.12, 0.11, 0.12]
    tilted = [1 / 8 + collapse * (0.45 - 1 / 8), 1 / 8 + collapse * (0.4 - 1 / 8)]
    rest = (1 - sum(tilted)) / 6
    layers = (
        layer_record(0, even, 0.07, fhs and fhs / 2),
        layer_record(1, [*tilted, *[rest] * 6] if collapse < 0.7 else
                     [0.5, 0.38, 0.118, 0.002, 0.0, 0.0, 0.0, 0.0], collapse, fhs),
    )  # fmt: skip
    loss = metric("loss", 4.6 - collapse * 2.7, 0.06)
    metrics = {n: layers[1].metrics[n] for n in layers[1].metrics}
    metrics |= {
        "collapse_worst": dataclasses.replace(layers[1].metrics["collapse"], router=NASTY),
        "fhs_worst": dataclasses.replace(layers[1].metrics["fhs"], router=NASTY),
    }
    return CheckpointRecord(
        step=step,
        path=f"checkpoint-{step}" if step is not None else ".",
        fingerprint="f" * 64,
        coverage=Coverage(3, 2, {"model.layers.2.mlp.gate": "left out by --layers"}),
        loss=loss,
        metrics=metrics,
        layers=layers,
        verdict=verdict,
        progress={"step": step, "tokens": None, "fraction": None if step is None else step / 3000},
        measurements="a" * 64,
        replay={"device": "cpu", "dtype": "float32", "batch_size": 8, "threads": 2,
                "notes": ["right padding: 12 sequences are shorter"]},
    )  # fmt: skip


VERDICT = Verdict(
    status="failing",
    routing="failing",
    performance="undetermined",
    policy="calibrated",
    findings=(
        Finding(
            "MG101", "router-collapse", "failing", "routing",
            "Router 1 sends 88% of its load to two of eight experts.", (1,),
            (Evidence("collapse", metric("collapse", 0.81), 1, NASTY),),
            Threshold(0.65, "evidence study, E=8", 0.62, 0.9, 0.12), steps=(1000, 3000),
        ),
        Finding(
            "MG102", "dead-experts", "watch", "routing",
            "Experts 3 to 7 of layer 1 are unused on this probe.", (1,),
            (Evidence("dead_experts", metric("dead_experts", 5.0, 0), 1, NASTY),),
            Threshold(0.25, "uncalibrated"), steps=(3000,),
        ),
        Finding("MG113", "balancing-inactive", "watch", "routing", f"The config says {NASTY}"),
        Finding("MG108", "near-ties", "info", "routing", "0.4% of tokens flip in bfloat16."),
        Finding("MG104", "router-uniform", "watch", "routing", "Routing said nothing of the token.",
                (0, 1), state="resolved", steps=(0,)),
    ),
    reasons=("MG101 router-collapse holds in layer 1 with its interval above the limit.",
             "One of three routers was not measured."),
    checks=(
        Check("MG101", "router-collapse", "routing", "found"),
        Check("MG102", "dead-experts", "routing", "found"),
        Check("MG105", "logit-explosion", "routing", "passed"),
        Check("MG110", "heterogeneity-rising", "routing", "passed"),
        Check("MG111", "loss-behind-reference", "performance", "skipped", "no reference run"),
    ),
)  # fmt: skip

INTERVENTIONS = (
    Intervention(
        "activate-balance-loss", "Activate the balance loss",
        "Set output_router_logits, so that the coefficient takes effect.",
        ("MG101", "MG113"), "The config asks for a balance loss that the framework never adds.",
        ConfigKey("transformers", "output_router_logits", False, True, False,
                  "with router_aux_loss_coef 0.001"),
        "After 200 steps collapse of layer 1 falls below 0.65.",
        {"grade": "literature", "source": "transformers issue 45120"}, (), (1,),
    ),
    Intervention(
        "raise-balance-loss", "Raise its coefficient ten times", "Raise router_aux_loss_coef.",
        ("MG101",), "The router sits far above the limit.",
        ConfigKey("transformers", "router_aux_loss_coef", 0.001, 0.01, True),
        "After 500 steps the load entropy of layer 1 rises.",
        {"grade": "measured", "source": "evidence study", "finding": "router-collapse",
         "recovered": 31, "recovered_control": 24, "n": 48, "runs": 24, "difference": 0.146,
         "interval": [-0.02, 0.31], "performance": 0.014, "performance_interval": [-0.01, 0.04]},
        ("stop",), (1,),
    ),
    Intervention(
        "scale-router-weights", "Scale the router's weights by 0.2",
        "Multiply the rows by 0.2 once.",
        ("MG101",), "The logits are sharp.",
        ConfigKey("transformers", None, lines="with torch.no_grad():\n    gate.weight.mul_(0.2)"),
        "FSI of layer 1 falls at once.", {"grade": "untested"},
    ),
    Intervention("stop", NASTY, NASTY, ("MG101",), NASTY,
                 ConfigKey(NASTY, NASTY, NASTY, NASTY, None, NASTY),
                 NASTY, {"grade": "untested"}),
)  # fmt: skip


def dynamics(first: int, last: int, speed: float) -> dict[str, Any]:
    """A move between two checkpoints."""
    names = {"speed": speed, "fsi_rate": 0.06, "fsi_rate_share": 0.31, "saturation": 0.64}
    metrics: dict[str, Any] = {n: Metric(v, v - 0.01, v + 0.01, 64) for n, v in names.items()}
    metrics["geodesic_excess"] = Metric(None, n=64, reason="needs three checkpoints")
    return {
        "from_step": first, "to_step": last,
        "from_path": f"checkpoint-{first}", "to_path": f"checkpoint-{last}",
        "geodesic_steps": [0, 1000, 3000][: 2 if last == 1000 else 3], "metrics": metrics,
        "layers": [],
    }  # fmt: skip


@pytest.fixture
def run() -> RunRecord:
    """Three checkpoints of a run whose router 1 collapses."""
    return RunRecord(
        status="partial",
        versions={"moegeo": "0.1.0", "torch": "2.13.0"},
        run={"name": f"demo-moe {NASTY}", "layout": "trainer", "model_type": "qwen3_moe",
             "framework": "transformers", "training": {"router_aux_loss_coef": 0.001},
             "log": [{"step": 0, "loss": 4.6}],
             "skipped": [{"path": "checkpoint-4000", "reason": "model.safetensors is truncated"}],
             "notes": []},
        probe={"source": "bundled", "sha256": "0123456789abcdef" * 4, "sequences": 256,
               "tokens": 65536, "loss_tokens": 65280, "domains": {"code": 128, "prose": 128}},
        settings={"fisher": {"kind": "empirical", "unit": "position"},
                  "policy": "calibrated", "seed": 0},
        baseline={"kind": "checkpoint", "step": 0, "path": "checkpoint-0", "baseline_draws": 1,
                  "reason": None},
        checkpoints=(
            checkpoint(0, 0.05, 1.0, None),
            checkpoint(1000, 0.48, 1.31, None),
            checkpoint(3000, 0.81, 1.72, VERDICT),
        ),
        verdict=VERDICT,
        interventions=INTERVENTIONS,
        dynamics=(dynamics(0, 1000, 0.8), dynamics(1000, 3000, 0.35)),
    )  # fmt: skip


@pytest.fixture
def single() -> RunRecord:
    """One healthy checkpoint of eight routers without a step, a baseline or a finding."""
    whole = Verdict(
        "healthy", "healthy", "undetermined", "calibrated", (), ("No check found anything.",)
    )
    one = checkpoint(None, 0.06, None, whole)
    layers = tuple(
        layer_record(i, [1 / 64] * 64, 0.02 + 0.01 * i, None) for i in range(20) if i != 1
    )
    one = dataclasses.replace(one, layers=layers, coverage=Coverage(19, 19))
    return RunRecord(
        status="complete",
        versions={"moegeo": "0.1.0"},
        run={"name": "olmoe", "model_type": "olmoe", "framework": None},
        probe={"source": "bundled", "sha256": "ab" * 32, "sequences": 256, "tokens": 65536},
        settings={"fisher": {"kind": "empirical", "unit": "position"}},
        baseline={
            "kind": None,
            "step": None,
            "path": None,
            "baseline_draws": 0,
            "reason": NO_BASELINE,
        },
        checkpoints=(one,),
        verdict=whole,
    )


@pytest.fixture
def comparison() -> ComparisonRecord:
    """Two runs with two matched pairs."""

    def difference(name: str, a: float | None, b: float | None) -> Difference:
        gap = None if a is None or b is None else round(b - a, 6)
        reason = None if gap is not None else NO_BASELINE
        return Difference(
            metric(name, a, reason=None if a is not None else NO_BASELINE),
            metric(name, b, reason=None if b is not None else NO_BASELINE),
            metric(name, gap, 0.01, reason=reason),
        )

    def pair(step: int, collapse: float) -> MatchedPair:
        found = {
            "loss": difference("loss", 2.4, 2.5),
            "fsi": difference("fsi", 0.35, 0.51),
            "collapse_worst": difference("collapse_worst", 0.07, collapse),
            "fhs": difference("fhs", None, 1.7),
        }
        one = {"collapse": difference("collapse", 0.07, collapse)}
        return MatchedPair(float(step), float(step), step, step, found, (LayerPair(1, NASTY, one),))

    return ComparisonRecord(
        versions={"moegeo": "0.1.0"},
        run_a=RunSummary("healthy-run", "healthy", "healthy", "undetermined", "qwen3_moe", 3),
        run_b=RunSummary(f"other {NASTY}", "failing", "failing", "undetermined", "qwen3_moe", 4),
        matched_by="step",
        pairs=(pair(1000, 0.48), pair(3000, 0.81)),
        healthier="a",
        reason="a's routing axis is healthy, b's failing",
        unmatched=(Unmatched("b", 4000, 4000.0, "no match within 2%"),),
        notes=("the runs differ in batch size",),
        probe={"source": "bundled", "sha256": "ab" * 32},
    )
