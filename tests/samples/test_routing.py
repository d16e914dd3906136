"""What docs/results/routing.md says of the sample runs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from moegeo_cli import routing
from moegeo_cli.commands.routing.record import RoutingRecord

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"


@functools.cache
def measure(sample: str, step: int) -> RoutingRecord:
    return routing(SAMPLES / sample / f"checkpoint-{step}", cache=False)


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ("healthy-qwen3-moe", ()),
        ("misaligned-qwen3-moe", ()),
        ("balanced-glm4-moe", ()),
        ("unbalanced-mixtral", ("shared-direction",)),
    ],
)
def test_findings_are_those_of_the_documents(sample: str, found: tuple[str, ...]) -> None:
    record = measure(sample, 400)
    assert tuple(f.name for f in record.findings) == found
    assert all(f.layers == (1, 2) for f in record.findings)
    for layer in record.layers:
        for entry in layer.geometry:
            assert (entry.spearman.ci_low or 0) > 0
        assert layer.metrics["rollout_p_value"].value == 0.001


def test_a_balance_loss_suppresses_the_answer_and_a_selection_bias_does_not() -> None:
    samples = ("healthy-qwen3-moe", "misaligned-qwen3-moe", "balanced-glm4-moe")
    answers = {s: measure(s, 400).metrics["response_relative"] for s in samples}
    assert all((answers[s].ci_high or 1) < 1 for s in samples[:2])
    assert (answers["balanced-glm4-moe"].ci_low or 0) > 2
