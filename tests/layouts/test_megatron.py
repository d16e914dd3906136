"""Megatron-core's checkpoints against the logits that its own models gave: see `write_megatron`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moegeo_cli import analyze, inspect
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, UnsupportedLayoutError
from moegeo_cli.models.loading import load_model
from moegeo_cli.records import RunRecord
from tests.layouts.write_megatron import FILES, IDS, MODELS, QWEN3, TWO_RANKS
from tests.sharding import save_state

CPU = torch.device("cpu")


def loaded(folder: Path) -> Any:
    return load_model(open_run(folder).newest, CPU, torch.float32)


@pytest.mark.parametrize("name", [*MODELS, *TWO_RANKS])
def test_the_logits_are_those_of_megatron(name: str) -> None:
    own = name if name in MODELS else next(iter(MODELS))
    expected = load_file(FILES / f"{own}.reference.safetensors")["logits"]
    with torch.no_grad():
        logits = loaded(FILES / name)(IDS).logits[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-6)


def numbers(record: RunRecord) -> dict[str, float]:
    return {
        f"{place}.{layer.layer}.{name}": metric.value
        for place, checkpoint in enumerate(record.checkpoints)
        for layer in checkpoint.layers
        for name, metric in layer.metrics.items()
        if metric.value is not None
    }


def test_a_run_of_them_has_the_numbers_of_the_exported_one(tmp_path: Path) -> None:
    probe = tmp_path / "probe.jsonl"
    rows = [{"input_ids": [(3 * n + k) % 43 for n in range(20)]} for k in range(6)]
    probe.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, name in ((100, "megatron-qwen3"), (200, "megatron-qwen3-by-expert")):
        shutil.copytree(FILES / name, tmp_path / "run" / f"iter_{step:07}")
        loaded(FILES / name).save_pretrained(tmp_path / "exported" / f"iter_{step:07}")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("200")
    options: dict[str, Any] = {"probe": probe, "baseline": "none", "cache": False}
    known = analyze(tmp_path / "exported", **options)
    for stream in (False, True):
        found = analyze(tmp_path / "run", stream=stream, **options)
        assert isinstance(found, RunRecord)
        assert isinstance(known, RunRecord)
        assert [c.step for c in found.checkpoints] == [100, 200]
        ours, theirs = numbers(found), numbers(known)
        assert len(ours) > 50
        assert ours.keys() == theirs.keys()
        assert all(math.isclose(ours[n], theirs[n], rel_tol=1e-6, abs_tol=1e-7) for n in ours)


def test_inspect_finds_routers_and_leaves_out_the_rest() -> None:
    found = inspect(FILES / "megatron-qwen2")
    assert (found.layout, found.problem) == ("torch-distributed", None)
    assert found.routers_found == found.routers_expected == 2
    assert found.left_out == {"decoder": 24}  # what its layers note of their state


def test_rows_of_a_stacked_layer_are_read_alone() -> None:
    index = open_weights(FILES / "megatron-qwen3", QWEN3)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert index.shape(name) == (4, 24, 16)
    assert torch.equal(index.tensor(name, (1, 3)), index.tensor(name)[1:3])
    assert len(index.read_bytes(name)) < index.size / 4
    assert index.shape("lm_head.weight") == (43, 16)


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"num_key_value_heads": 4}, IncompleteCheckpointError, "do not fit each other"),
        ({"num_attention_heads": None}, IncompleteCheckpointError, "how many heads"),
        ({"model_type": "mixtral", "num_local_experts": 4}, UnsupportedLayoutError,
         "is for model type mixtral"),
    ],
)  # fmt: skip
def test_a_config_of_another_model_is_refused(
    change: dict[str, Any], kind: type[MoegeoError], word: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FILES / "megatron-qwen3", tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps({**QWEN3, **change}))
    with pytest.raises(kind, match=word):
        loaded(folder)


def test_names_without_a_map_are_refused_with_the_way_out(tmp_path: Path) -> None:
    state = {
        "embedding.word_embeddings.weight": torch.ones(4, 2),
        "decoder.layers.0.mixer.in_proj.weight": torch.ones(2, 2),
    }
    index = open_weights(save_state(state, tmp_path / "hybrid"))
    assert index.obstacle is not None
    assert "Megatron-core" in index.obstacle.message
    assert "key maps exist for mixtral, qwen2_moe, qwen3_moe" in str(index.obstacle.found)
    assert "megatron.bridge" in str(index.obstacle.hint)


def test_a_bias_that_transformers_has_no_place_for_must_be_zero(tmp_path: Path) -> None:
    known = open_weights(FILES / "megatron-qwen3-by-layer", QWEN3)
    state = {
        sources[0].saved: known._assemble(sources[0])  # type: ignore[attr-defined]
        for sources in known.naming.sources.values()  # type: ignore[attr-defined]
    }
    for value in (0.0, 0.5):
        state["decoder.layers.1.mlp.router.expert_bias"] = torch.full((4,), value)
        index = open_weights(save_state(state, tmp_path / str(value)), QWEN3)
        assert index.obstacle is None
        if value:
            with pytest.raises(UnsupportedLayoutError, match="selection bias"):
                index.check_type("qwen3_moe")
        else:
            index.check_type("qwen3_moe")
