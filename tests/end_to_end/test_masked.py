"""A model with an expert switched off is measured as its twin that never had that expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moegeo_cli import analyze
from moegeo_cli.records import Metric, RunRecord
from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import build_tiny

LENGTHS = (60, 11, 83, 40, 27, 64)
# family -> how many experts, and what else the config needs
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "gpt_oss": ("num_local_experts", 6, {}),
    "glm4_moe": ("n_routed_experts", 8, {"n_group": 1, "topk_group": 1}),
    "deepseek_v3": ("n_routed_experts", 8, {"n_group": 1, "topk_group": 1}),
}


def save_both(family: str, folder: Path) -> int:
    """The model with its last expert switched off, and the same without it; gives E."""
    key, experts, changes = FAMILIES[family]
    whole = build_tiny(family, **changes)
    few = build_tiny(family, **changes, **{key: experts - 1})
    own = few.state_dict()
    with torch.no_grad():
        for name, tensor in whole.state_dict().items():
            by_expert = tensor.shape != own[name].shape
            own[name].copy_(tensor[:-1] if by_expert else tensor)
            if name.endswith(("e_score_correction_bias", "router.bias")):
                tensor[-1] = -torch.inf
    whole.save_pretrained(folder / "whole")
    few.save_pretrained(folder / "few")
    return experts


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_numbers_are_those_of_the_model_without_the_expert(family: str, tmp_path: Path) -> None:
    experts = save_both(family, tmp_path)
    probe = write_probe(tmp_path / "p.jsonl", random_ids(LENGTHS))
    whole, few = (
        analyze(tmp_path / name, probe=probe, cache=False, baseline="none")
        for name in ("whole", "few")
    )
    assert isinstance(whole, RunRecord)
    assert isinstance(few, RunRecord)
    assert whole.newest.loss.value == pytest.approx(few.newest.loss.value, rel=1e-6)
    for with_it, without in zip(whole.newest.layers, few.newest.layers, strict=True):
        assert (with_it.experts, with_it.choices) == (experts, experts - 1)
        assert with_it.masked == (experts - 1,)
        assert with_it.state == "ok"
        assert with_it.load is not None
        assert with_it.load[-1] == 0.0
        assert with_it.dead == without.dead
        for name, expected in without.metrics.items():
            same(name, with_it.metrics[name], expected)
    for name, expected in few.newest.metrics.items():
        same(name, whole.newest.metrics[name], expected)


def same(name: str, found: Metric, expected: Metric) -> None:
    if expected.value is None:
        assert found.value is None, name
    else:
        assert found.value == pytest.approx(expected.value, rel=1e-4, abs=1e-6), name
