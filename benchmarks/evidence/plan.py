"""The planned runs: healthy base configurations, and the same with a common fault.

A base is a task, an architecture and sane training. Each has three healthy seeds and four causes,
drawn so that every kind comes equally often, of two seeds each; a cause draws its severity over a
wide range and other settings with it, so that none decides the outcome alone. A fifth of the
bases, with all that hangs on them, is untouched: set apart by the hash of their names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.evidence.settings import ModelSettings, RunSettings, TrainSettings

BASES = {"english": 11, "languages": 11, "rules": 11, "digits": 5}
HEALTHY_SEEDS, SEEDS, CAUSES_A_BASE = 3, 2, 4
UNTOUCHED = 0.2
PLAN_SEED = 20261125

Generator = np.random.Generator
Draw = Callable[[Generator, TrainSettings, ModelSettings], dict[str, Any]]


def _log(generator: Generator, low: float, high: float) -> float:
    """A number drawn evenly on a logarithmic scale, to three digits."""
    return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.3g}")


def _even(generator: Generator, low: float, high: float) -> float:
    return float(f"{generator.uniform(low, high):.3g}")


def _divergence(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "learning_rate": t.learning_rate * _log(g, 4, 80),
        "clip": float(g.choice([0.0, 0.0, 1.0])),
        "warmup": _even(g, 0.0, 0.05),
        "beta2": float(g.choice([0.95, 0.999])),
    }


def _slow(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    if g.random() < 0.5:
        return {"learning_rate": t.learning_rate * _log(g, 0.01, 0.4)}
    return {"warmup": _even(g, 0.5, 3.0), "learning_rate": t.learning_rate * _log(g, 0.2, 1.0)}


def _early_collapse(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "balance": t.balance * _log(g, 0.001, 0.3),
        "bias_rate": t.bias_rate * _log(g, 0.01, 0.3),
        "router_rate": _log(g, 2, 40),
        "warmup": _even(g, 0.0, 0.04),
    }


def _late_collapse(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    start = _even(g, 0.12, 0.4)
    return {
        "balance_until": start,
        "router_rate_after": _log(g, 10, 200),
        "router_rate_at": start,
        "decay": False,
    }


def _late_divergence(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "rate_jump": _log(g, 4, 80),
        "rate_jump_at": _even(g, 0.15, 0.6),
        "clip": float(g.choice([0.0, 1.0])),
        "decay": False,
    }


def _locked(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "router_scale": _log(g, 20, 300),
        "router_rate": _log(g, 0.001, 0.3),
        "weight_decay": 0.0,
    }


def _dead(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "bad_experts": _even(g, 0.25, 0.75),
        "bad_scale": _log(g, 10, 200),
        "balance": t.balance * _log(g, 0.001, 0.3),
        "bias_rate": t.bias_rate * _log(g, 0.01, 0.3),
        "router_rate": _log(g, 1, 10),
    }


def _low_precision(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "router_precision": str(g.choice(["bfloat16", "float8", "float8"])),
        "router_scale": _log(g, 1, 60),
        "router_rate": _log(g, 0.05, 30),
        "balance": t.balance * _log(g, 0.01, 1.0),
        "learning_rate": t.learning_rate * _log(g, 0.5, 6.0),
    }


def _capacity(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "capacity": _log(g, 0.02, 0.8),
        "balance": t.balance * _log(g, 0.001, 1.0),
        "router_rate": _log(g, 0.5, 10),
    }


def _inactive(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "balance_applied": False,
        "bias_rate": 0.0,
        "router_rate": _log(g, 2, 40),
        "learning_rate": t.learning_rate * _log(g, 0.7, 4.0),
    }


def _micro_balance(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "balance_over": "sequence",
        "balance": _log(g, 0.3, 100),
        "router_rate": _log(g, 1, 20),
    }


def _shift(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {"shift_at": _even(g, 0.12, 0.8), "learning_rate": t.learning_rate * _log(g, 0.3, 2.0)}


def _bad_resume(g: Generator, t: TrainSettings, m: ModelSettings) -> dict[str, Any]:
    return {
        "resume_at": _even(g, 0.12, 0.8),
        "resume_fault": str(g.choice(["moments", "router", "schedule"])),
        "resume_rate": _log(g, 2, 60),
        "clip": float(g.choice([0.0, 1.0])),
    }


CAUSES: dict[str, Draw] = {
    "divergence": _divergence,
    "slow": _slow,
    "early-collapse": _early_collapse,
    "late-collapse": _late_collapse,
    "late-divergence": _late_divergence,
    "locked": _locked,
    "dead-experts": _dead,
    "low-precision": _low_precision,
    "capacity": _capacity,
    "balance-inactive": _inactive,
    "micro-balance": _micro_balance,
    "data-shift": _shift,
    "bad-resume": _bad_resume,
}
NOT_OF = {"digits": {"capacity"}}  # its block chooses, out of a router's sight


@functools.cache
def plan_runs(plan_seed: int = PLAN_SEED) -> tuple[RunSettings, ...]:
    """All runs of a plan, healthy seeds of a base before what is held against them.

    Another seed is another plan, with other bases: severities and labels were set on one.
    """
    runs: list[RunSettings] = []
    for task, count in BASES.items():
        generator = np.random.default_rng([plan_seed, *task.encode()])
        bases = [(f"{task}-{n:02d}", *_base(generator, task, n)) for n in range(count)]
        apart = sorted(bases, key=lambda b: hashlib.sha256(b[0].encode()).digest())
        untouched = {name for name, *_ in apart[: max(1, round(UNTOUCHED * count))]}
        kinds = _deal(generator, task, count)
        for place, (base, model, train) in enumerate(bases):
            shared: dict[str, Any] = {
                "base": base, "task": task, "model": model, "untouched": base in untouched,
            }  # fmt: skip
            variants = [("healthy", train, HEALTHY_SEEDS)]
            for kind in kinds[place]:
                changes = CAUSES[kind](generator, train, model)
                variants.append((kind, dataclasses.replace(train, **changes), SEEDS))
            for kind, settings, seeds in variants:
                configuration = f"{base}-{kind}"
                runs += [
                    RunSettings(f"{configuration}-{seed}", configuration=configuration, kind=kind,
                                seed=seed, train=settings, **shared)
                    for seed in range(seeds)
                ]  # fmt: skip
    return tuple(runs)


def _deal(generator: Generator, task: str, count: int) -> list[list[str]]:
    """Causes of each base: each kind as often as any other, none twice in a base."""
    kinds = [kind for kind in CAUSES if kind not in NOT_OF.get(task, ())]
    while True:
        deck: list[str] = []
        while len(deck) < count * CAUSES_A_BASE:
            deck += [str(k) for k in generator.permutation(kinds)]
        hands = [deck[i * CAUSES_A_BASE : (i + 1) * CAUSES_A_BASE] for i in range(count)]
        if all(len(set(hand)) == CAUSES_A_BASE for hand in hands):
            return hands


def _base(generator: Generator, task: str, number: int) -> tuple[ModelSettings, TrainSettings]:
    """A sane configuration; E and the kind of router go round, the rest is drawn.

    Where combine weights are made to sum to 1, K is at least 2: a single expert's weight would be
    1 whatever the router says, and no loss would teach it.
    """
    experts = (4, 8, 16, 32)[number % 4]
    kind = "digits" if task == "digits" else ("mixtral", "qwen3_moe", "glm4_moe")[number % 3]
    least = 1 if kind in ("qwen3_moe", "glm4_moe") else 2
    top_k = int(generator.choice([k for k in (1, 2, 4) if least <= k <= experts / 2]))
    if task == "digits":
        model = ModelSettings(kind, experts, top_k, 24, int(generator.choice([8, 16])), 2)
        rate = _log(generator, 0.003, 0.006)
    else:
        width = int(generator.choice([32, 48]))
        hidden = max(8, int(width * generator.choice([0.5, 1.0]) * 4 / (experts**0.5) / 8) * 8)
        layers = 2 if experts == 32 else int(generator.choice([2, 2, 2, 3]))
        model = ModelSettings(kind, experts, top_k, width, hidden, layers)
        rate = _log(generator, 0.003, 0.007)
    sigmoid = kind == "glm4_moe"
    train = TrainSettings(
        learning_rate=rate,
        balance=0.0 if sigmoid else _log(generator, 0.05, 0.2),
        bias_rate=_log(generator, 0.01, 0.03) if sigmoid else 0.0,
        beta2=float(generator.choice([0.95, 0.99])),
        decay=bool(generator.random() < 0.7),
    )
    return model, train
