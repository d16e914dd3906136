import json

import pytest

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.checkpoints.routers import check_routers, find_router_tensors
from moegeo_cli.errors import IncompleteCheckpointError, ShapeError, UnsupportedLayoutError


def rewrite(folder, change):
    """Save the folder's one safetensors file again, its tensors changed by `change`."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def save(folder, tensors, config):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: torch.zeros(s) for n, s in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def check(folder):
    return check_routers(open_weights(folder), describe_architecture(read_config(folder)))


def test_routers_of_mixtral(masters):
    routers = check(masters / "mixtral")
    assert [r.layer for r in routers] == [0, 1, 2]
    assert routers[1].weight == "model.layers.1.block_sparse_moe.gate.weight"
    assert routers[1].shape == (4, 16)
    assert routers[1].bias is None
    assert routers[1].selection_bias is None


def test_routers_of_deepseek_have_a_selection_bias(masters):
    routers = check(masters / "deepseek")
    assert [r.layer for r in routers] == [1, 2]
    assert routers[0].selection_bias == "model.layers.1.mlp.gate.e_score_correction_bias"


def test_a_missing_router_is_named(checkpoint):
    folder = checkpoint()
    name = "model.layers.1.block_sparse_moe.gate.weight"
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(IncompleteCheckpointError, match=name.replace(".", r"\.")):
        check(folder)


def test_no_router_at_all(checkpoint):
    folder = checkpoint()
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if ".gate." not in n})
    with pytest.raises(IncompleteCheckpointError, match="3 routers"):
        check(folder)


def test_experts_without_a_router_where_the_config_tells_no_layers(checkpoint):
    folder = checkpoint()
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "new_moe"}))
    assert [r.layer for r in check(folder)] == [0, 1, 2]
    name = "model.layers.1.block_sparse_moe.gate.weight"
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(IncompleteCheckpointError, match=r"layers\.1"):
        check(folder)


@pytest.mark.parametrize("change", [{"num_local_experts": 8}, {"hidden_size": 32}])
def test_shapes_that_contradict_the_config(checkpoint, change):
    folder = checkpoint()
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ShapeError, match="contradicts the config"):
        check(folder)


DEEPSEEK = {
    "model_type": "deepseek_v3", "n_routed_experts": 8, "num_experts_per_tok": 2,
    "hidden_size": 16, "num_hidden_layers": 3, "first_k_dense_replace": 1,
}  # fmt: skip


def test_a_selection_bias_that_one_router_lacks(tmp_path):
    tensors = {
        "model.layers.1.mlp.gate.weight": (8, 16),
        "model.layers.1.mlp.gate.e_score_correction_bias": (8,),
        "model.layers.2.mlp.gate.weight": (8, 16),
    }
    with pytest.raises(IncompleteCheckpointError, match="selection bias"):
        check(save(tmp_path / "a", tensors, DEEPSEEK))
    tensors["model.layers.2.mlp.gate.e_score_correction_bias"] = (7,)
    with pytest.raises(ShapeError, match=r"layers\.2"):
        check(save(tmp_path / "b", tensors, DEEPSEEK))


def test_prediction_layers_and_other_towers_are_set_apart(tmp_path):
    bias = ".mlp.gate.e_score_correction_bias"
    tensors = {
        f"model.layers.{i}{leaf}": shape
        for i in (1, 2, 3)
        for leaf, shape in ((".mlp.gate.weight", (8, 16)), (bias, (8,)))
    }
    tensors |= {
        "model.visual.blocks.1.mlp.gate.weight": (4, 5),
        "mtp.layers.0.mlp.gate.weight": (8, 16),
        "model.layers.1.mlp.shared_expert_gate.weight": (1, 16),
        "model.layers.1.self_attn.gate.weight": (16, 16),
        "model.layers.1.mlp.gate_proj.weight": (32, 16),
    }
    folder = save(tmp_path / "a", tensors, DEEPSEEK)
    assert [r.layer for r in check(folder)] == [1, 2]
    index = open_weights(folder)
    found = find_router_tensors(index, describe_architecture(DEEPSEEK))
    assert [r.module for r in found if not r.main] == [
        "mtp.layers.0.mlp.gate",
        "model.visual.blocks.1.mlp.gate",
        "model.layers.3.mlp.gate",
    ]


def test_a_bias_of_the_logits(tmp_path):
    tensors = {"model.layers.0.mlp.router.weight": (4, 8), "model.layers.0.mlp.router.bias": (4,)}
    config = {
        "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2,
        "hidden_size": 8, "num_hidden_layers": 1,
    }  # fmt: skip
    (router,) = check(save(tmp_path / "a", tensors, config))
    assert router.bias == "model.layers.0.mlp.router.bias"
    assert router.selection_bias is None


def test_quantised_routers_are_refused(checkpoint):
    folder = checkpoint()
    rewrite(
        folder,
        lambda tensors: {n: t.char() if ".gate." in n else t for n, t in tensors.items()},
    )
    with pytest.raises(UnsupportedLayoutError, match="quantised"):
        check(folder)
    rewrite(
        folder,
        lambda tensors: {n.replace("gate.weight", "gate.qweight"): t for n, t in tensors.items()},
    )
    with pytest.raises(UnsupportedLayoutError, match="quantised"):
        check(folder)


def renamed(folder, old, new):
    rewrite(folder, lambda ts: {n.replace(old, new): t for n, t in ts.items()})
    return folder


@pytest.mark.parametrize("name", ["gate.linear", "my_routing", "moe_router.inner.0"])
@pytest.mark.parametrize("model_type", ["mixtral", "unheard_moe"])
def test_a_router_under_another_name_is_named(checkpoint, name, model_type):
    folder = renamed(checkpoint(), ".gate.weight", f".{name}.weight")
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(IncompleteCheckpointError) as caught:
        check(folder)
    found, hint = caught.value.found, caught.value.hint
    assert f"model.layers.0.block_sparse_moe.{name}.weight [4, 16] has the shape" in found
    where = "block_sparse_moe.gate.weight" if model_type == "mixtral" else "router.weight"
    assert f"save it as model.layers.0.{where}" in hint
    assert "download" not in hint


def test_one_router_under_another_name_is_told_by_its_siblings(checkpoint):
    folder = renamed(checkpoint(), "1.block_sparse_moe.gate.weight", "1.feed.gate.linear.weight")
    with pytest.raises(IncompleteCheckpointError) as caught:
        check(folder)
    assert caught.value.context["stand_ins"] == {
        "model.layers.1.block_sparse_moe.gate.weight": "model.layers.1.feed.gate.linear.weight"
    }


def test_what_merely_has_a_routers_shape_is_not_taken_for_it(tmp_path):
    tensors = {
        "model.layers.1.mlp.gate.weight": (8, 16),
        "model.layers.2.self_attn.k_proj.weight": (8, 16),  # the same shape, by chance
        "model.layers.2.mlp.gate.inner.weight": (7, 16),  # another shape
    }
    with pytest.raises(IncompleteCheckpointError) as caught:
        check(save(tmp_path / "a", tensors, DEEPSEEK))
    assert caught.value.context == {"missing": ["model.layers.2.mlp.gate.weight"], "stand_ins": {}}
    assert "download" in caught.value.hint
