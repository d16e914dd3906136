import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.checkpoints import families, layering, text_part
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.config_keys import EXPERT_KEYS, GROUP_KEYS, TOP_K_KEYS
from moegeo_cli.checkpoints.families import read_families
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.text_part import known_types, text_config
from moegeo_cli.errors import DenseModelError, MoegeoError, UnsupportedArchitectureError
from moegeo_cli.scorings import names_in_configs

TABLE = read_families()
# What a class leaves out by default, or needs to be a mixture of experts.
OVERRIDES = {
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "deepseek_ocr2_text": {"num_experts_per_tok": 6},
    "unlimited_ocr_text": {"num_experts_per_tok": 6},
    "doge": {"is_moe": True},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2},
    "diffusion_gemma_text": {"num_experts": 8, "top_k_experts": 2},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2},
    "vitpose_backbone": {"num_experts": 6},
    "granitemoe_swa": {"layer_types": ["full_attention"] * 32},
}
# Configurations with experts that are not a language model's own, or of a part of another model.
NOT_OURS = {
    "dots3_note_vision_encoder",  # the vision tower's
}


def saved(model_type, tmp_path, **changes):
    """A config as transformers saves it, and the object it comes from."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **changes)
    config.save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text()), config


def first(config, names):
    return next((v for n in names if isinstance(v := getattr(config, n, None), int)), None)


@pytest.mark.parametrize("model_type", known_types())
def test_experts_and_k_are_those_of_the_configuration_class(model_type, tmp_path):
    document, config = saved(model_type, tmp_path, **OVERRIDES.get(model_type, {}))
    found = describe_architecture(document, refuse=False)
    part = getattr(config, "ffn_config", config)
    experts = first(
        part, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    )
    top_k = first(
        part,
        ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "num_selected_experts"),
    )
    assert found.known
    assert found.experts - found.zero_experts == experts
    assert found.top_k == (top_k or {"switch_transformers": 1, "nllb-moe": 2}.get(model_type))
    assert found.hidden == (getattr(config, "hidden_size", None) or config.d_model)
    assert found.router_rows >= found.experts > 1


@pytest.mark.parametrize("model_type", known_types())
def test_flags_of_the_table_are_those_of_the_configuration_class(model_type, tmp_path):
    document, config = saved(model_type, tmp_path, **OVERRIDES.get(model_type, {}))
    found = describe_architecture(document, refuse=False)
    (family,) = (f for f in TABLE if model_type in f["types"])
    rule = family["renormalised"]
    if isinstance(rule, list) and model_type != "cohere2_moe":
        value = config
        for part in rule[0].split("."):
            value = getattr(value, part)
        assert found.selection.renormalised == bool(value)
        # What the table takes for absent keys: the class's own default, or the flag is saved.
        assert rule[0].rpartition(".")[2] in json.dumps(document) or "moe_renormalize" in document
    for key in ("scale", "balance", "zero_experts", "shared_rows", "scoring_key", "needs"):
        if key in family and not (model_type == "beam" and key == "scale"):
            value = config
            for part in family[key].split("."):
                if key == "needs" and model_type == "diffusion_gemma_text":
                    break
                assert hasattr(value, part), (key, family[key])
                value = getattr(value, part)
    if "groups" in family and hasattr(config, "n_group"):
        limited = config.n_group and config.topk_group and config.topk_group < config.n_group
        when = family.get("groups_when")
        if when:
            limited = limited and getattr(config, when[0]) == when[1]
        assert found.selection.groups == ((config.n_group, config.topk_group) if limited else None)


def test_the_table_is_well_formed():
    listed = [name for family in TABLE for name in family["types"]]
    assert len(listed) == len(set(listed))
    rules = set(layering.LAYER_RULES) | {"unknown"}
    for family in TABLE:
        assert family["layers"] in rules
        assert family["unselected"] in {"zero", "dense", "unless-renormalised", "verify"}
        assert family["scoring"] in names_in_configs() or "refused" in family
        assert family.get("groups", "max") in {"max", "top2"}
        if family["unselected"] == "unless-renormalised":
            assert isinstance(family["renormalised"], list)


def test_every_family_of_transformers_is_in_the_table():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    keys = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
    missing = []
    for model_type in CONFIG_MAPPING_NAMES:
        if model_type in known_types() or model_type in NOT_OURS:
            continue
        fields = getattr(CONFIG_MAPPING[model_type], "__dataclass_fields__", {})
        if any(key in fields for key in keys):
            missing.append(model_type)
    assert missing == []


@pytest.mark.parametrize(
    ("model_type", "changes", "gradient"),
    [
        ("mixtral", {}, "zero"),
        ("qwen3_moe", {"norm_topk_prob": True}, "zero"),
        ("qwen3_moe", {"norm_topk_prob": False}, "dense"),
        ("olmoe", {}, "dense"),
        ("deepseek_v2", {"num_experts_per_tok": 2, "norm_topk_prob": True}, "dense"),
        ("deepseek_v3", {}, "zero"),
        ("jamba", {}, "dense"),
        ("llama4_text", {}, "zero"),
        ("gpt_oss", {}, "zero"),
    ],
)
def test_gradient_of_unselected_experts(model_type, changes, gradient, tmp_path):
    document, _ = saved(model_type, tmp_path, **changes)
    assert describe_architecture(document).unselected_gradient == gradient


def test_deepseek_v3(tmp_path):
    document, _ = saved("deepseek_v3", tmp_path)
    found = describe_architecture(document)
    assert found.scoring == "sigmoid"
    assert found.selection.bias
    assert found.selection.groups == (8, 4)
    assert found.selection.group_score == "top2"
    assert found.selection.renormalised is True
    assert found.selection.scale == 2.5
    assert found.moe_layers == tuple(range(3, 61))
    assert found.balance_key is None


def test_groups_of_deepseek_v2_need_their_method(tmp_path):
    changes = {"num_experts_per_tok": 2, "n_group": 8, "topk_group": 3}
    document, _ = saved("deepseek_v2", tmp_path, **changes)
    assert describe_architecture(document).selection.groups is None
    document, _ = saved("deepseek_v2", tmp_path, **changes, topk_method="group_limited_greedy")
    assert describe_architecture(document).selection.groups == (8, 3)
    assert describe_architecture(document).selection.group_score == "max"


def test_scoring_by_a_key(tmp_path):
    document, _ = saved("deepseek_v4", tmp_path)
    found = describe_architecture(document)
    assert found.scoring == "sqrt_softplus"
    assert found.hash_layers == (0, 1, 2)
    assert describe_architecture({**document, "scoring_func": "sigmoid"}).scoring == "sigmoid"
    with pytest.raises(UnsupportedArchitectureError, match="'tanh'"):
        describe_architecture({**document, "scoring_func": "tanh"})
    document, _ = saved("cohere2_moe", tmp_path, expert_selection_fn="sigmoid")
    assert describe_architecture(document).scoring == "sigmoid"


@pytest.mark.parametrize("model_type", ["phimoe", "doge"])
def test_refused_families_are_named(model_type, tmp_path):
    document, _ = saved(model_type, tmp_path, **OVERRIDES.get(model_type, {}))
    with pytest.raises(UnsupportedArchitectureError, match=model_type):
        describe_architecture(document)
    assert describe_architecture(document, refuse=False).refused


# Configs as their publishers wrote them, with what they leave out or add.
PUBLISHED = {
    "mixtral": (
        {"num_local_experts": 8, "num_experts_per_tok": 2, "hidden_size": 4096,
         "num_hidden_layers": 32},
        (8, 2, tuple(range(32))),
    ),
    "qwen2_moe": (
        {"num_experts": 60, "num_experts_per_tok": 4, "hidden_size": 2048,
         "num_hidden_layers": 24, "decoder_sparse_step": 2, "norm_topk_prob": False},
        (60, 4, tuple(range(1, 24, 2))),
    ),
    "deepseek_v3": (
        {"n_routed_experts": 256, "num_experts_per_tok": 8, "hidden_size": 7168,
         "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
         "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        (256, 8, tuple(range(3, 61))),
    ),
    "dbrx": (
        {"d_model": 6144, "n_layers": 40, "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}},
        (16, 4, tuple(range(40))),
    ),
    "jamba": (
        {"num_experts": 16, "num_experts_per_tok": 2, "hidden_size": 4096,
         "num_hidden_layers": 8, "expert_layer_period": 2, "expert_layer_offset": 1},
        (16, 2, (1, 3, 5, 7)),
    ),
    "ernie4_5_moe": (
        {"moe_num_experts": 64, "moe_k": 6, "hidden_size": 2560, "num_hidden_layers": 6,
         "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
        (64, 6, (1, 2, 3, 4, 5)),
    ),
    "hunyuan_v1_moe": (
        {"num_experts": 64, "moe_topk": [8] * 4, "hidden_size": 4096, "num_hidden_layers": 4},
        (64, 8, (0, 1, 2, 3)),
    ),
    "llama4": (
        {"text_config": {"model_type": "llama4_text", "num_local_experts": 16,
                         "num_experts_per_tok": 1, "hidden_size": 5120, "num_hidden_layers": 4,
                         "interleave_moe_layer_step": 2}},
        (16, 1, (1, 3)),
    ),
    "lfm2_moe": (
        {"num_experts": 32, "num_experts_per_tok": 4, "hidden_size": 2048,
         "num_hidden_layers": 4, "num_dense_layers": 2},
        (32, 4, (2, 3)),
    ),
    "nemotron_h": (
        {"n_routed_experts": 128, "num_experts_per_tok": 6, "hidden_size": 2688,
         "num_hidden_layers": 6, "hybrid_override_pattern": "MEM*ME"},
        (128, 6, (1, 5)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_configs(model_type):
    config, (experts, top_k, layers) = PUBLISHED[model_type]
    found = describe_architecture({"model_type": model_type, **config})
    assert found.known
    assert (found.experts, found.top_k, found.moe_layers) == (experts, top_k, layers)
    assert found.model_type == model_type


def test_a_nested_config_without_a_type_of_its_own():
    config = {"model_type": "qwen3_vl_moe", "text_config": {"num_experts": 8}}
    assert describe_architecture(config).text_type == "qwen3_vl_moe_text"
    assert text_config(config) == {"num_experts": 8}
    thinker = {"thinker_config": {"text_config": {"model_type": "x", "num_experts": 8}}}
    assert describe_architecture({"model_type": "omni", **thinker}).text_type == "x"


def test_k_by_layer():
    config = {"model_type": "hunyuan_v1_moe", "num_experts": 8, "moe_topk": [1, 2]}
    found = describe_architecture(config)
    assert found.top_k is None
    assert found.top_k_by_layer == (1, 2)


def test_an_unknown_type_is_tried_by_its_keys():
    config = {"model_type": "new_moe", "n_routed_experts": 8, "moe_top_k": 2, "hidden_size": 4,
              "num_hidden_layers": 3, "first_k_dense_replace": 1}  # fmt: skip
    found = describe_architecture(config)
    assert not found.known
    assert found.scoring is None
    assert found.unselected_gradient == "verify"
    assert (found.experts, found.top_k, found.moe_layers) == (8, 2, (1, 2))
    assert describe_architecture({**config, "scoring_func": "sigmoid"}).scoring == "sigmoid"
    with pytest.raises(UnsupportedArchitectureError, match="new_moe"):
        describe_architecture({**config, "scoring_func": "entmax"})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 8},
        {"model_type": "gemma4_text", "enable_moe_block": False, "num_experts": 8},
        {"model_type": "granitemoehybrid", "num_local_experts": 0},
        {"model_type": "jamba", "num_experts": 1},
        {"model_type": "doge", "is_moe": False, "num_experts": 16},
        {},
    ],
)
def test_dense_models(config):
    with pytest.raises(
        DenseModelError, match="is a dense model: its config asks for no routed experts"
    ):
        describe_architecture(config)


def test_a_dense_checkpoint(masters):
    with pytest.raises(DenseModelError, match="llama"):
        describe_architecture(read_config(masters / "dense"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = [
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_topk", "hidden_size",
    "num_hidden_layers", "mlp_layer_types", "first_k_dense_replace", "moe_layer_freq",
    "decoder_sparse_step", "mlp_only_layers", "moe_layers", "interleave_moe_layer_step",
    "expert_layer_period", "expert_layer_offset", "layers_block_type", "n_group", "topk_group",
    "topk_method", "norm_topk_prob", "scoring_func", "routed_scaling_factor", "ffn_config",
    "hybrid_override_pattern", "moe_layer_interval", "moe_layer_start_index", "text_config",
    "zero_expert_num", "enable_moe_block", "num_dense_layers",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    model_type=st.sampled_from(known_types()) | VALUES,
    config=st.dictionaries(st.sampled_from(KEYS), VALUES),
)
def test_any_config_ends_in_a_clean_error(model_type, config):
    try:
        found = describe_architecture({"model_type": model_type, "num_experts": 4, **config})
    except MoegeoError:
        return
    assert found.experts >= 2


def test_a_config_nested_without_end():
    config = {"num_experts": 4}
    for _ in range(2000):
        config = {"text_config": config}
    with pytest.raises(
        DenseModelError, match="unknown is a dense model: its config asks for no routed experts"
    ):
        describe_architecture(config)


def read_keys(model_type, keys):
    """The key of some that transformers saves a fact under; None where its class has none."""
    from transformers import AutoConfig

    document = AutoConfig.for_model(model_type).to_dict()
    document |= {f"ffn_config.{k}": v for k, v in (document.get("ffn_config") or {}).items()}
    return next((key for key in keys if key in document), None)


@pytest.mark.parametrize("model_type", known_types())
def test_of_several_keys_the_familys_own_counts(model_type):
    """As transformers saves it, whatever other families call it."""
    from transformers import AutoConfig

    (family,) = (f for f in TABLE if model_type in f["types"])
    document = AutoConfig.for_model(model_type, **OVERRIDES.get(model_type, {})).to_dict()
    own_experts = read_keys(model_type, EXPERT_KEYS) or "num_experts"
    for fact, keys, right, wrong in (
        ("experts", EXPERT_KEYS, 480, 160),
        ("top_k", TOP_K_KEYS, 2, 3),
        ("groups", GROUP_KEYS, 4, 2),
    ):
        own = read_keys(model_type, keys)
        if own is None or "." in own or (fact == "groups" and "groups" not in family):
            continue
        if fact == "top_k" and "top_k" in family:
            continue
        others = {key: wrong for key in keys if "." not in key and key != own}
        stated = {own_experts: 480, "topk_group": 1, own: right}
        when = dict([family["groups_when"]]) if "groups_when" in family else {}
        found = describe_architecture({**document, **others, **stated, **when}, refuse=False)
        values = {
            "experts": found.experts - found.zero_experts,
            "top_k": found.top_k,
            "groups": found.selection.groups and found.selection.groups[0],
        }
        assert values[fact] == right, fact
        assert any(f"{own} counts" in note for note in found.notes)


def test_a_family_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house_moe.toml").write_text(
        'types = ["house_moe"]\nscoring = "sigmoid"\nrenormalised = true\n'
        'unselected = "dense"\nlayers = "all"\nrouter = "mlp.door"\nbias = true\n'
    )
    monkeypatch.setattr(families, "FOLDER", tmp_path)
    for cached in (families.read_families, text_part.families_by_type):
        cached.cache_clear()
    try:
        known = describe_architecture(
            {"model_type": "house_moe", "num_experts": 6, "num_experts_per_tok": 2,
             "hidden_size": 8, "num_hidden_layers": 3}
        )  # fmt: skip
    finally:
        monkeypatch.undo()
        for cached in (families.read_families, text_part.families_by_type):
            cached.cache_clear()
    assert (known.experts, known.top_k, known.scoring) == (6, 2, "sigmoid")
    assert known.selection.bias
    assert "house_moe" not in known_types()
