"""A slow, obvious computation of what `moegeo analyze` reports, sharing no code with it.

One sequence at a time, unpadded; plain loops over tokens and experts; float64 from the
router logits on. It knows the architectures' scoring from a table of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

SIGMOID = {"deepseek_v3", "glm4_moe"}
DENSE = {"qwen2_moe", "olmoe"}


def distance(p: list[float], q: list[float]) -> float:
    chord = math.sqrt(sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True)))
    return 4 * math.asin(min(1.0, chord / 2))


def entropy(p: list[float]) -> float:
    return -sum(a * math.log(a) for a in p if a > 0)


def probabilities(z: list[float], scoring: str) -> list[float]:
    if scoring == "softmax":
        top = max(z)
        scores = [math.exp(v - top) for v in z]
    else:
        scores = [1 / (1 + math.exp(-v)) for v in z]
    return [s / sum(scores) for s in scores]


def spread(fishers: list[np.ndarray], masses: list[float] | None) -> dict[str, float]:
    mean = sum(fishers) / len(fishers)
    h = sum(float(np.linalg.norm(f - mean)) for f in fishers) / len(fishers)
    traces = [float(f.sum()) for f in fishers]
    return {
        "heterogeneity": h,
        "heterogeneity_relative": h / float(np.linalg.norm(mean)),
        "heterogeneity_trace": float(np.std(traces) / np.mean(traces)),
    }


def reference_metrics(path: Path, ids: list[list[int]]) -> dict[str, Any]:
    """Metrics of every router by path, and the loss, of the checkpoint in `path`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    kind = model.config.model_type
    scoring = "sigmoid" if kind in SIGMOID else "softmax"
    routers = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("TopKRouter", "TopkRouter"))
    }
    tokens: dict[str, list[dict[str, Any]]] = {name: [] for name in routers}
    loss_sum, loss_count = 0.0, 0
    for sequence in ids:
        seen: dict[str, dict[str, torch.Tensor]] = {}
        handles = []
        for name, module in routers.items():
            module.weight.requires_grad_(True)

            def keep(
                _: Any, args: Any, out: Any, name: str = name, seen: dict[str, Any] = seen
            ) -> None:
                out[0].retain_grad()
                seen[name] = {
                    "x": args[0].detach().reshape(-1, args[0].shape[-1]),
                    "z": out[0],
                    "w": out[1].detach(),
                    "i": out[2],
                }

            handles.append(module.register_forward_hook(keep))
        batch = torch.tensor([sequence])
        logits = model(input_ids=batch).logits[0].float()
        loss = F.cross_entropy(logits[:-1], batch[0, 1:], reduction="sum")
        loss.backward()
        loss_sum += float(loss.detach())
        loss_count += len(sequence) - 1
        for handle in handles:
            handle.remove()
        for name, call in seen.items():
            for t in range(len(sequence)):
                tokens[name].append(
                    {
                        "x": call["x"][t].double().numpy(),
                        "z": [float(v) for v in call["z"][t].detach()],
                        "g": call["z"].grad[t].double().numpy(),
                        "i": [int(v) for v in call["i"][t]],
                        "w": [float(v) for v in call["w"][t]],
                    }
                )
    return {
        "loss": loss_sum / loss_count,
        "routers": {
            name: router_metrics(rows, scoring, kind in DENSE) for name, rows in tokens.items()
        },
    }


def router_metrics(rows: list[dict[str, Any]], scoring: str, dense: bool) -> dict[str, Any]:
    """Of one router, of tokens: x input, z logits, g their gradient, i chosen, w weights."""
    experts, top_k, count = len(rows[0]["z"]), len(rows[0]["i"]), len(rows)
    uniform = [1 / experts] * experts
    furthest = 2 * math.acos(1 / math.sqrt(experts))
    ps = [probabilities(row["z"], scoring) for row in rows]
    mean_p = [sum(p[e] for p in ps) / count for e in range(experts)]
    counts = [sum(row["i"].count(e) for row in rows) for e in range(experts)]
    share = [c / sum(counts) for c in counts]
    combine = []
    for row in rows:
        mixed = [0.0] * experts
        for e, w in zip(row["i"], row["w"], strict=True):
            mixed[e] += w
        combine.append([v / sum(mixed) for v in mixed])
    mean_c = [sum(c[e] for c in combine) / count for e in range(experts)]
    log_e, log_k = math.log(experts), math.log(top_k)
    categorical, empirical = [], []
    for e in range(experts):
        f_cat = np.zeros_like(rows[0]["x"])
        f_emp = np.zeros_like(rows[0]["x"])
        for row, p in zip(rows, ps, strict=True):
            slope = 1.0 if scoring == "softmax" else 1 - 1 / (1 + math.exp(-row["z"][e]))
            f_cat += slope**2 * p[e] * (1 - p[e]) * row["x"] ** 2 / count
            if dense or e in row["i"]:
                f_emp += row["g"][e] ** 2 * row["x"] ** 2 / count
        categorical.append(f_cat)
        if dense or counts[e] > 0:
            empirical.append(f_emp)
    return {
        "fsi": sum(distance(p, uniform) for p in ps) / count / furthest,
        "fsi_dispatch": sum(distance(c, uniform) for c in combine) / count / furthest,
        "collapse": distance(share, uniform) / (2 * math.acos(math.sqrt(top_k / experts))),
        "collapse_soft": distance(mean_p, uniform) / furthest,
        "dispersion": sum(distance(p, mean_p) for p in ps) / count / furthest,
        "information": (entropy(mean_p) - sum(map(entropy, ps)) / count) / log_e,
        "information_dispatch": (entropy(mean_c) - sum(map(entropy, combine)) / count) / log_e,
        "entropy_token": sum(map(entropy, ps)) / count / log_e,
        "entropy_load": entropy(share) / log_e,
        "entropy_load_rescaled": (entropy(share) - log_k) / (log_e - log_k),
        "max_violation": max(share) * experts - 1,
        "load_cv": float(np.std(share) / np.mean(share)),
        "logit_z": sum(
            (max(r["z"]) + math.log(sum(math.exp(v - max(r["z"])) for v in r["z"]))) ** 2
            for r in rows
        )
        / count,
        "load": share,
        "mean_probability": mean_p,
        "fisher.categorical.token": spread(categorical, None),
        "fisher.empirical.position": spread(empirical, None),
    }
