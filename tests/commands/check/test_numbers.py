"""The numbers of the table against slow and obvious ones, and their nulls."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from moegeo_cli import check
from tests.commands.check.planting import load_file, save_run

TYPES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")


def rows_of(state: dict[str, np.ndarray], router: str) -> np.ndarray:
    return state[f"{router}.weight"].astype(np.float64)


def experts_of(state: dict[str, np.ndarray], router: str) -> list[np.ndarray]:
    """Each expert's matrices as one vector."""
    block = router.rpartition(".")[0]
    found: dict[int, list[np.ndarray]] = {}
    for name in sorted(n for n in state if n.startswith(f"{block}.experts.")):
        rest = name.removeprefix(f"{block}.experts.")
        if rest[0].isdigit():
            found.setdefault(int(rest.split(".")[0]), []).append(state[name].ravel())
        elif state[name].ndim == 3:  # biases of experts have two dimensions: no matrix
            for expert, part in enumerate(state[name]):
                found.setdefault(expert, []).append(part.ravel())
    return [np.concatenate(found[e]).astype(np.float64) for e in sorted(found)]


@pytest.mark.parametrize("model_type", TYPES)
def test_every_number_is_its_definition(model_type: str, tmp_path: Path) -> None:
    run = save_run(tmp_path, model_type, (0, 100))
    first, last = (
        {n: v.numpy() for n, v in load_file(run / f"checkpoint-{s}" / "model.safetensors").items()}
        for s in (0, 100)
    )
    newest = check(run, cache=False).newest
    for layer in newest.layers:
        value = {name: metric.value for name, metric in layer.metrics.items()}
        rows = rows_of(last, layer.router)
        norms = np.linalg.norm(rows, axis=1)
        assert layer.row_norms == pytest.approx(norms, rel=1e-6)
        assert value["row_norm"] == pytest.approx(norms.mean(), rel=1e-6)
        assert value["row_norm_spread"] == pytest.approx(norms.std() / norms.mean(), rel=1e-6)
        spectrum = np.linalg.svd(rows, compute_uv=False)
        assert value["stable_rank"] == pytest.approx(
            (spectrum**2).sum() / spectrum[0] ** 2, rel=1e-5
        )
        cosines = [
            abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in itertools.combinations(rows, 2)
        ]
        assert value["router_cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
        experts, before = experts_of(last, layer.router), experts_of(first, layer.router)
        sizes = np.array([np.linalg.norm(e) for e in experts])
        assert layer.expert_norms == pytest.approx(sizes, rel=1e-5)
        assert value["expert_norm_top"] == pytest.approx(sizes.max() / np.median(sizes), rel=1e-5)
        assert value["expert_norm_spread"] == pytest.approx(sizes.std() / sizes.mean(), rel=1e-3)
        apart = np.mean(
            [np.linalg.norm(a - b) / math.hypot(np.linalg.norm(a), np.linalg.norm(b))
             for a, b in itertools.combinations(experts, 2)]
        )  # fmt: skip
        assert value["expert_distance"] == pytest.approx(apart, rel=0.15), "a sketch's precision"
        drift = np.mean(
            [np.linalg.norm(a - b) / np.linalg.norm(b)
             for a, b in zip(experts, before, strict=True)]
        )  # fmt: skip
        assert value["expert_drift"] == pytest.approx(drift, rel=0.2)
        if layer.selection_bias is not None:
            name = f"{layer.router}.e_score_correction_bias"
            assert value["bias_spread"] == pytest.approx(np.ptp(last[name]), rel=1e-6)
            assert value["bias_drift"] == pytest.approx(
                np.abs(last[name] - first[name]).mean(), rel=1e-5
            )


def test_nulls_are_what_random_matrices_show(tmp_path: Path) -> None:
    newest = check(save_run(tmp_path, "mixtral", (0,)), cache=False).newest
    metrics = newest.layers[0].metrics
    experts, width = newest.layers[0].experts, 24
    rng = np.random.default_rng(3)
    ranks, cosines = [], []
    for _ in range(2000):
        rows = rng.normal(size=(experts, width))
        spectrum = np.linalg.svd(rows, compute_uv=False)
        ranks.append((spectrum**2).sum() / spectrum[0] ** 2)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines.append(np.abs(unit @ unit.T)[np.triu_indices(experts, 1)].mean())
    assert metrics["stable_rank"].null_value == pytest.approx(np.mean(ranks), rel=0.1)
    assert metrics["router_cosine"].null_value == pytest.approx(np.mean(cosines), rel=0.01)
    assert metrics["expert_distance"].null_value == 1.0
