"""What every large healthy model shows is no alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from moegeo_cli import analyze
from tests.tiny_models import save_tiny


@pytest.mark.parametrize("experts", [128, 256])
def test_a_random_large_model_with_a_published_config_raises_no_alarm(
    experts: int, tmp_path: Path
) -> None:
    """Near-ties grow with E by arithmetic; a published config says nothing of its training."""
    path = save_tiny(
        "qwen3_moe", tmp_path / "model", vocab_size=256, num_experts=experts, num_experts_per_tok=8,
        router_aux_loss_coef=0.001, output_router_logits=False,
    )  # fmt: skip
    run = analyze(path, max_tokens=2048, cache=False)
    assert run.verdict is not None
    severities = {f.name: f.severity for f in run.verdict.findings}
    assert severities.get("near-ties", "info") == "info"
    assert severities["balancing-inactive"] == "info"
    assert "failing" not in severities.values()
    metric = run.newest.layers[0].metrics["near_ties"]
    assert metric.null_value == pytest.approx({128: 0.0647, 256: 0.0878}[experts], abs=0.003)
