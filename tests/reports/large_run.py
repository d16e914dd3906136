"""A run of 48 routers with 128 experts, small enough to keep: what it looks like is what is tested.

`python -m tests.reports.large_run FOLDER` makes its checkpoints in FOLDER/narrow-48x128 (150 MB: a
Qwen3-MoE of width 16, whose routers are sharpened from save to save, not trained), and
`python -m tests.reports.large_run --record RUN.json` keeps of `moegeo analyze --format json` what
reports show, rounded, as recorded/narrow-48x128.json.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from moegeo_cli.records import RunRecord
from moegeo_cli.reports import read

FILE = Path(__file__).parent / "recorded" / "narrow-48x128.json.gz"
SAMPLE = Path(__file__).parents[2] / "sample_checkpoints/healthy-qwen3-moe/checkpoint-400"
METRICS = {
    "fsi", "collapse", "dispersion", "information", "dead_experts", "effective_experts",
    "near_ties", "entropy_load", "fhs", "heterogeneity", "heterogeneity_trace",
    "heterogeneity_conditional", "logit_max",
}  # fmt: skip


def large_run() -> RunRecord:
    """The kept record."""
    return read(gzip.decompress(FILE.read_bytes()))


def make(folder: Path) -> None:
    """Three checkpoints: fresh, sharpened, sharpened again, the deeper a layer the more."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    vocabulary = json.loads((SAMPLE / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=48,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=128,
        num_experts_per_tok=8, vocab_size=vocabulary, max_position_embeddings=1024,
        norm_topk_prob=True, output_router_logits=True, router_aux_loss_coef=0.001,
    ))  # fmt: skip
    for step, scale in ((0, 0.0), (500, 6.0), (1000, 20.0)):
        torch.manual_seed(step)
        with torch.no_grad():
            for depth, layer in enumerate(model.model.layers if step else ()):
                rows = layer.mlp.gate.weight
                rows.mul_(3.0)
                rows.add_(torch.randn_like(rows) * 0.02 * scale * depth / 48)
                rows[depth % 7 :: 16] *= 1 - 0.1 * depth / 48
        path = folder / "narrow-48x128" / f"checkpoint-{step}"
        model.save_pretrained(path)
        for file in SAMPLE.glob("*token*"):
            shutil.copy(file, path)


def keep(document: dict[str, Any]) -> None:
    """Keep a run's JSON without what no report shows."""
    for checkpoint in document["checkpoints"]:
        checkpoint["fisher"] = {}
        checkpoint["replay"].pop("described", None)
        for layer in checkpoint["layers"]:
            layer["metrics"] = {k: v for k, v in layer["metrics"].items() if k in METRICS}
            layer |= {"fisher": {}, "domain_load": {}, "mean_probability": None,
                      "fisher_trace": None}  # fmt: skip
    for checkpoint in document["checkpoints"][:-1]:
        checkpoint["verdict"] = None
    for move in document["dynamics"]:
        move["layers"] = []
    text = json.dumps(_rounded(document))
    FILE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    if given.record:
        keep(json.loads(given.path.read_text()))
    else:
        make(given.path)
