"""What routing reflects, slowly: one sequence at a time, loops over tokens and pairs of them.

Router inputs, logits and choices are read by hooks of its own; nothing of moegeo's is used.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

SIGMOID = {"deepseek_v3", "glm4_moe"}


def watch(path: Path, ids: list[list[int]]) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Every token of every router: input, logits, choice, id, place, sequence; and the type."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    routers = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("TopKRouter", "TopkRouter"))
    }
    tokens: dict[str, list[dict[str, Any]]] = {name: [] for name in routers}
    for number, sequence in enumerate(ids):
        seen: dict[str, tuple[Any, Any]] = {}

        def keep(name: str, seen: dict[str, tuple[Any, Any]] = seen) -> Any:
            def take(_: Any, args: Any, made: Any) -> None:
                seen[name] = (args[0], made)

            return take

        handles = [m.register_forward_hook(keep(n)) for n, m in routers.items()]
        with torch.no_grad():
            model(input_ids=torch.tensor([sequence]))
        for handle in handles:
            handle.remove()
        for name, (x, out) in seen.items():
            for t, token in enumerate(sequence):
                tokens[name].append({
                    "x": x.reshape(-1, x.shape[-1])[t].double().numpy(),
                    "z": out[0].reshape(-1, out[0].shape[-1])[t].double().numpy(),
                    "chosen": {int(e) for e in out[2].reshape(len(sequence), -1)[t]},
                    "token": token, "place": t, "sequence": number,
                })  # fmt: skip
    weights = {n: m.weight.detach().double().numpy() for n, m in routers.items()}
    for name, rows in tokens.items():
        for row in rows:
            row["W"] = weights[name]
    return str(model.config.model_type), tokens


def metrics(kind: str, rows: list[dict[str, Any]], lengths: list[int]) -> dict[str, float]:
    """A router's numbers, by name."""
    softmax = kind not in SIGMOID
    weight = rows[0]["W"] - (rows[0]["W"].mean(0) if softmax else 0.0)
    x = np.array([row["x"] for row in rows])
    z = np.array([row["z"] for row in rows])
    if softmax:
        z = z - z.mean(1, keepdims=True)
    mean = x.mean(0)
    found = {
        "shared_energy": mean @ mean / (x**2).sum(1).mean(),
        "response": float(np.linalg.norm(weight @ mean) / np.linalg.norm(mean)),
        "constant_share": (z.mean(0) ** 2).sum() / (z**2).sum(1).mean(),
    }
    random = np.linalg.norm(weight) / math.sqrt(x.shape[1])
    found["response_relative"] = found["response"] / random
    rank = len(weight) - softmax
    basis = np.linalg.svd(weight)[2][:rank]
    spread = x - mean
    found["row_space_share"] = ((spread @ basis.T) ** 2).sum() / (spread**2).sum()
    pairs: dict[str, list[float]] = {
        name: [] for name in ("all", "unrelated", "sequence", "position", "id")
    }
    for a, b in itertools.combinations(rows, 2):
        overlap = len(a["chosen"] & b["chosen"]) / len(a["chosen"])
        apart = a["sequence"] != b["sequence"]
        pairs["all"].append(overlap)
        pairs["unrelated" if apart else "sequence"].append(overlap)
        if apart and a["place"] == b["place"]:
            pairs["position"].append(overlap)
        if apart and a["token"] == b["token"]:
            pairs["id"].append(overlap)
    chance = float(np.mean(pairs["all"]))
    found["overlap_chance"] = chance
    found["overlap_unrelated"] = float(np.mean(pairs["unrelated"]))
    for name, key in (
        ("overlap_sequence", "sequence"), ("overlap_position", "position"),
        ("vocabulary_overlap", "id"),
    ):  # fmt: skip
        found[name] = (float(np.mean(pairs[key])) - chance) / (1 - chance)
    found["rollout_overlap"] = _rollout(rows, lengths)
    return found


def _rollout(rows: list[dict[str, Any]], lengths: list[int]) -> float:
    """First halves against second halves, each sequence once."""
    experts = len(rows[0]["W"])

    def usage(own: list[dict[str, Any]]) -> np.ndarray:
        counts = np.zeros(experts)
        for row in own:
            for e in row["chosen"]:
                counts[e] += 1 / math.sqrt(len(row["chosen"]))
        return counts / len(own)

    first, second = [], []
    for number, length in enumerate(lengths):
        own = [row for row in rows if row["sequence"] == number]
        cut = (length + 1) // 2
        first.append(usage([row for row in own if row["place"] < cut]))
        second.append(usage([row for row in own if row["place"] >= cut]))
    pairs = itertools.permutations(range(len(lengths)), 2)
    others = float(np.mean([first[a] @ second[b] for a, b in pairs]))
    own_value = float(np.mean([a @ b for a, b in zip(first, second, strict=True)]))
    return (own_value - others) / (1 - others)


def correlations(
    kind: str, rows: list[dict[str, Any]], *, within: bool
) -> dict[tuple[str, str], tuple[float, float]]:
    """Spearman and Pearson over all pairs, by hidden and usage similarity."""
    softmax = kind not in SIGMOID
    weight = rows[0]["W"] - (rows[0]["W"].mean(0) if softmax else 0.0)
    hidden: dict[str, list[float]] = {"cosine": [], "visible": []}
    usage: dict[str, list[float]] = {"distribution": [], "chosen": []}
    for row in rows:
        scores = np.exp(row["z"] - row["z"].max()) if softmax else 1 / (1 + np.exp(-row["z"]))
        row["p"] = scores / scores.sum()
    for a, b in itertools.combinations(rows, 2):
        if (a["sequence"] == b["sequence"]) != within:
            continue
        sizes = np.linalg.norm(a["x"]) * np.linalg.norm(b["x"])
        hidden["cosine"].append(a["x"] @ b["x"] / sizes)
        hidden["visible"].append((weight @ a["x"]) @ (weight @ b["x"]))
        inner = min(1.0, float(np.sqrt(a["p"] * b["p"]).sum()))
        usage["distribution"].append(-2 * math.acos(inner))
        usage["chosen"].append(len(a["chosen"] & b["chosen"]))
    return {
        (h, u): (float(spearmanr(one, other).statistic), float(pearsonr(one, other).statistic))
        for h, one in hidden.items()
        for u, other in usage.items()
    }
