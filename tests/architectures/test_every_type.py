"""Every causal mixture-of-experts type in transformers, from a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from moegeo_cli import analyze
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.text_part import known_types
from moegeo_cli.errors import UnsupportedArchitectureError
from tests.architectures import oracle
from tests.architectures.table import PAGE, refused_row, row, write_probe
from tests.architectures.zoo import save_tiny

# Types with a language model of their own in transformers' causal table.
TYPES = (
    "afmoe", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "dbrx",
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1", "dots3_note_text",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint", "gemma4_text", "glm4_moe",
    "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "granitemoe", "granitemoe_swa",
    "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "hy_v4", "inkling2_text",
    "inkling_text", "jamba", "jetmoe", "kimi_linear", "kolibri1", "laguna", "lfm2_moe",
    "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash", "minimax", "minimax_m2",
    "minimax_m3_vl_text", "mistral4", "mixtral", "nemotron_h", "olmoe", "qwen2_moe",
    "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen4_exp_text", "solar_open", "zaya",
)  # fmt: skip
# Several towers around a language model.
TOWERS = (
    "aria", "deepseek_ocr2", "dots3_note", "ernie4_5_vl_moe", "gemma4", "glm4v_moe", "glm5_next",
    "inkling2", "inkling_mm_model", "kimi_k25", "llama4", "minimax_m3_vl", "mistral_large4",
    "muse_spark", "nemo_speechlm", "nemotron_h_omni", "qwen3_5_moe", "qwen3_omni_moe",
    "qwen3_omni_moe_thinker", "qwen3_vl_moe", "qwen4_exp", "step3p7", "unlimited_ocr",
    # whose language model may be of any type
    "granite_speech + granitemoehybrid", "internvl + qwen3_moe", "lfm2_vl + lfm2_moe",
    "mistral3 + mistral4",
)  # fmt: skip
# Types whose layers carry a state along the sequence.
STATEFUL = {
    "bailing_hybrid", "glm5_next", "granitemoehybrid", "inkling2", "inkling2_text",
    "inkling_mm_model", "inkling_text", "jamba", "kimi_linear", "lfm2_moe", "minimax", "nemotron_h",
    "nemotron_h_omni", "granite_speech + granitemoehybrid", "lfm2_vl + lfm2_moe", "nemo_speechlm",
    "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp",
    "qwen4_exp_text", "zaya",
}  # fmt: skip
# An encoder with a decoder: test_encoder_decoder.py.
PAIRS = ("switch_transformers",)
REFUSED = (
    "diffusion_gemma",
    "doge",
    "nllb-moe",
    "openai_privacy_filter",
    "phimoe",
    "vitpose_backbone",
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    return path, write_probe(path)


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations are estimated by widths: tracing a recurrence takes as long as all else.

    Traces are held to models in tests/replay/test_whole_plan.py.
    """

    monkeypatch.setattr("moegeo_cli.models.memory.activations.BatchTracer._peak", lambda *_: None)


# Its recurrence alone takes as long as ten other types.
LONG = ("bailing_hybrid",)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(t, marks=pytest.mark.slow) if t in LONG else t for t in (*TYPES, *TOWERS)],
)
def test_a_type_is_measured_whole(
    model_type: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save_tiny(model_type, tmp_path)
    file, ids = probe
    store = tmp_path / "store"
    run = analyze(tmp_path, probe=file, unit="sequence", baseline="none", cache_dir=store)
    [checkpoint] = run.checkpoints
    assert row(model_type, tmp_path, run) in PAGE.read_text().splitlines(), "write the table anew"
    notes = " ".join(checkpoint.replay["notes"])
    assert ("carry a state" in notes) == (model_type in STATEFUL)
    experts = checkpoint.layers[0].experts
    model = oracle.load_whole(tmp_path)
    weights = oracle.router_weights(model, [layer.router for layer in checkpoint.layers], experts)
    with oracle.watched(model, experts) as seen:
        sums = oracle.sequence_traces(model, weights, ids, experts)
    traces = dict(zip((layer.router for layer in checkpoint.layers), sums, strict=True))
    blocks = list(seen.values())
    assert checkpoint.coverage.routers_found == checkpoint.coverage.routers_measured == len(blocks)
    layers = [_beside(block, checkpoint.layers) for block in blocks]
    for block, layer in zip(blocks, layers, strict=True):
        share = block.counts_E / block.counts_E.sum()
        skips = experts - 1 if model_type == "zaya" else None
        load = [v for e, v in enumerate(layer.load) if e != skips]  # a skip calls no expert
        used = [v for e, v in enumerate(share) if e != skips]
        np.testing.assert_allclose(np.array(load) / sum(load), used, atol=1e-6)
    [entry] = store.glob("*/measurements.safetensors")
    stored = load_file(entry)
    for block, layer in zip(blocks, layers, strict=True):
        place = checkpoint.layers.index(layer)
        _check_weights(block, stored[f"router.{place}.sample_logits"], layer.scoring)
    assert len({layer.router for layer in layers}) == len(layers)
    hashed = describe_architecture(model.config.to_dict()).hash_layers
    for layer in layers:
        trace = traces[layer.router]
        if layer.layer in hashed:
            assert layer.fisher_trace is None
            assert "token id (hash)" in (layer.metrics["fsi"].reason or "")
            continue
        assert layer.metrics["fsi"].value is not None
        assert layer.metrics["margin"].value is not None, layer.metrics["margin"].reason
        assert layer.fisher_trace is not None
        for got, expected in zip(layer.fisher_trace, trace, strict=True):
            if got is None:
                assert expected < 1e-6 * trace.max()
            else:
                assert got == pytest.approx(expected, rel=2e-3, abs=1e-6 * trace.max())


def _check_weights(block: oracle.Block, logits_TE: np.ndarray, scoring: str) -> None:
    """What the experts are mixed with is the table's score of the stored logits."""
    if not block.weights:
        return  # the model does not tell its experts
    z = logits_TE.astype(float)
    scores = {
        "softmax": lambda: np.exp(z - z.max(1, keepdims=True)),
        "sigmoid": lambda: 1 / (1 + np.exp(-z)),
        "sqrt_softplus": lambda: np.sqrt(np.log1p(np.exp(z))),
    }[scoring]()
    chosen = np.take_along_axis(scores, np.concatenate(block.selected), axis=1)
    expected = chosen / chosen.sum(1, keepdims=True)
    got = np.concatenate(block.weights)
    known = np.isfinite(got).all(1)  # a skipped token mixes nothing
    np.testing.assert_allclose(got[known], expected[known], atol=1e-5)


def _beside(block: oracle.Block, layers: tuple[Any, ...]) -> Any:
    """The router of a block of experts: the one whose path shares most with the block's."""

    def shared(path: str) -> int:
        parts = oracle.place(path).split("."), oracle.place(block.path).split(".")
        pairs = zip(*parts, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), 99)

    return max(layers, key=lambda layer: shared(layer.router))


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name(
    model_type: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save_tiny(model_type, tmp_path)
    with pytest.raises(UnsupportedArchitectureError, match=model_type) as caught:
        analyze(tmp_path, probe=probe[0], cache=False)
    reason = caught.value.message.partition(": ")[2]
    assert refused_row(model_type, reason) in PAGE.read_text().splitlines()


def test_the_table_knows_every_type_here() -> None:
    assert set(TYPES) - set(known_types()) == set()
