"""A config that holds a fact twice: the family's own key counts, on every way in."""

import json
import shutil

import pytest
import torch

from moegeo_cli import analyze
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.checkpoints.routers import check_routers
from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from moegeo_cli.errors import ShapeError


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    rows = torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


def with_keys(source, folder, **keys):
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


# mixtral's class takes num_experts for num_local_experts, deepseek's knows no num_experts.
CASES = {
    "deepseek_v3": {"num_experts": 16, "moe_top_k": 4, "num_expert_group": 1},
    "mixtral": {"num_experts": 12, "moe_topk": 1},
    "olmoe": {"num_local_experts": 3, "num_selected_experts": 6},
}


@pytest.mark.parametrize("model_type", CASES)
@pytest.mark.parametrize("stream", [False, True])
def test_another_key_beside_the_own_changes_no_number(tiny, tmp_path, probe, model_type, stream):
    plain = tiny(model_type)
    both = with_keys(plain, tmp_path / "both", **CASES[model_type])
    options = {"probe": probe, "baseline": "init" if not stream else "none", "cache": False}
    one, other = (analyze(p, **options, stream=stream) for p in (plain, both))
    assert one.checkpoints[0].loss == other.checkpoints[0].loss
    for a, b in zip(one.checkpoints[0].layers, other.checkpoints[0].layers, strict=True):
        assert a.metrics == b.metrics
    notes = " ".join(other.run["notes"])
    for key, value in CASES[model_type].items():
        assert f"{key} = {value}" in notes
        assert f"{key} = {value}" not in " ".join(one.run["notes"])
    assert any(f"{key} = " in note for note in inspect_checkpoint(both).notes)


def test_a_key_that_the_family_does_not_read_decides_nothing(tiny, tmp_path, probe):
    """transformers' DeepSeek-V3 reads num_experts_per_tok alone, and takes 8 where it is absent."""
    folder = with_keys(tiny("deepseek_v3"), tmp_path / "a", moe_top_k=1)
    config = json.loads((folder / "config.json").read_text())
    del config["num_experts_per_tok"]
    (folder / "config.json").write_text(json.dumps(config))
    found = analyze(folder, probe=probe, baseline="none", cache=False)
    assert [layer.top_k for layer in found.checkpoints[0].layers] == [8, 8]
    assert "moe_top_k = 1, which deepseek_v3 does not read" in " ".join(found.run["notes"])
    assert describe_architecture(config).top_k is None


def test_where_the_weights_contradict_the_own_key_both_are_named(tiny, tmp_path):
    folder = with_keys(tiny("deepseek_v3"), tmp_path / "a", n_routed_experts=16, num_experts=8)
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ShapeError, match="n_routed_experts = 16 and num_experts = 8"):
        check_routers(open_weights(folder), describe_architecture(config))
