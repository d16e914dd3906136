"""What `moegeo experts` cannot measure is null and says why; what it says of a choice is so."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moegeo_cli import experts
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.errors import UnsupportedArchitectureError
from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import build_tiny

LENGTHS = [9 + (7 * i) % 29 for i in range(24)]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe(tmp_path_factory.mktemp("probe") / "p.jsonl", random_ids(LENGTHS))


def save(
    path: Path, model_type: str = "mixtral", change: Callable[[Any], None] | None = None,
    **config: Any,
) -> Path:  # fmt: skip
    model = build_tiny(model_type, 1, **config)
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(path)
    return path


def measure(path: Path, probe: Path, **options: Any) -> ExpertsRecord:
    return experts(path, probe=probe, cache=False, **{"rank": 2, **options})


def test_an_expert_of_nan_takes_its_layer_s_functions_and_nothing_else(
    tmp_path: Path, probe: Path
) -> None:
    def lose(model: Any) -> None:
        model.model.layers[-1].mlp.experts.down_proj[2] = math.nan

    path = save(tmp_path / "m", change=lose)
    record = measure(path, probe, verify=1)
    *others, last = record.layers
    reason = "expert 2 of the layer: no finite values"
    assert last.method == last.metrics["alignment"].reason == reason
    assert last.metrics["overlap_input"].value is not None
    assert all(f"functions: {reason}" in e.reasons for e in last.expert)
    assert all(layer.metrics["alignment"].value is not None for layer in others)
    assert record.loss.value is None
    assert record.status == "partial"
    assert "no prune candidates in layers 0, 1: the loss's gradient is not finite" in record.notes


def test_where_no_layer_can_be_measured_the_command_says_so(tmp_path: Path, probe: Path) -> None:
    def lose(model: Any) -> None:
        for layer in model.model.layers:
            layer.mlp.gate.weight[0, 0] = math.nan

    path = save(tmp_path / "m", change=lose)
    with pytest.raises(UnsupportedArchitectureError, match="not finite"):
        measure(path, probe)


def test_without_a_loss_there_is_no_fisher_and_nothing_to_prune(tmp_path: Path) -> None:
    single = write_probe(tmp_path / "p.jsonl", random_ids([1] * 60))
    record = measure(save(tmp_path / "m"), single)
    used = [e for layer in record.layers for e in layer.expert if e.tokens]
    assert used
    for expert in used:
        assert expert.fisher_trace is None
        assert "Fisher trace: no token counts towards a loss" in expert.reasons
    assert record.prune_candidates == ()
    assert record.notes[-1] == (
        "no prune candidates in layers 0, 1, 2: no token counts towards a loss"
    )


def test_a_router_without_gradient_ranks_nothing_by_it(tmp_path: Path, probe: Path) -> None:
    record = measure(save(tmp_path / "m", num_experts_per_tok=1), probe)
    assert record.prune_candidates == ()
    assert "the Fisher trace of every expert is 0" in record.notes[-1]


@pytest.mark.parametrize(
    ("domains", "words"),
    [((), "no named domains"), (("de",), "one domain (de)"), (("de", "en"), None)],
)
def test_on_a_narrow_probe_prune_candidates_are_marked_and_that_is_said_first(
    domains: tuple[str, ...], words: str | None, tmp_path: Path
) -> None:
    path = write_probe(tmp_path / "p.jsonl", random_ids(LENGTHS), list(domains))
    record = measure(save(tmp_path / "m"), path)
    assert record.prune_candidates
    for candidate in record.prune_candidates:
        assert candidate.narrow == (words is not None)
        assert ("on this text alone" in candidate.reason) == candidate.narrow
    said = [note for note in record.notes if "Before you prune" in note]
    if words is None:
        assert said == []
    else:
        assert words in record.notes[0]
        assert said == [record.notes[0]]
