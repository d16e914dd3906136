import json

import pytest

from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from moegeo_cli.commands.inspect.record import InspectionRecord
from moegeo_cli.errors import PathError
from moegeo_cli.records import from_dict
from moegeo_cli.reports.json_report import plain


def test_a_checkpoint(masters):
    found = inspect_checkpoint(masters / "mixtral")
    assert found.kind == "checkpoint"
    assert found.model_type == "mixtral"
    assert found.architecture == "MixtralForCausalLM"
    assert (found.experts, found.top_k, found.scoring) == (4, 2, "softmax")
    assert found.routers_expected == found.routers_found == 3
    assert found.routers[0].shape == (4, 16)
    assert found.files == ("model.safetensors",)
    assert found.bytes == (masters / "mixtral" / "model.safetensors").stat().st_size
    assert found.parameters == sum(found.dtypes.values())
    assert found.problem is None
    assert from_dict(InspectionRecord, plain(found)) == found


def test_pickled_weights_are_described_alike(masters):
    pickled, plain = (inspect_checkpoint(masters / name) for name in ("pickled", "mixtral"))
    for key in ("parameters", "dtypes", "routers", "experts", "tensors"):
        assert getattr(pickled, key) == getattr(plain, key)


def test_selection_of_deepseek(masters):
    found = inspect_checkpoint(masters / "deepseek")
    assert found.layout == "safetensors-sharded"
    assert found.selection_bias is True
    assert found.groups == (2, 1)
    assert found.routers[0].selection_bias.endswith("e_score_correction_bias")
    assert set(found.dtypes) == {"BF16", "F32"} or set(found.dtypes) == {"BF16"}


def test_a_run_lists_its_checkpoints_and_describes_the_newest(checkpoint, tmp_path):
    checkpoint(to="run/checkpoint-1")
    checkpoint(to="run/checkpoint-20", global_step=20)
    checkpoint(to="run/tmp-checkpoint-30")
    found = inspect_checkpoint(tmp_path / "run")
    assert found.kind == "run"
    assert found.inspected == "checkpoint-20"
    assert found.step == 20
    assert [c.step for c in found.checkpoints] == [1, 20]
    assert [s["path"] for s in found.skipped] == ["tmp-checkpoint-30"]
    assert from_dict(InspectionRecord, plain(found)) == found


def test_a_dense_model_is_described_with_its_problem(masters):
    found = inspect_checkpoint(masters / "dense")
    assert found.experts is None
    assert found.routers == ()
    assert found.problem.startswith("MG-E020")


def test_a_refused_family_is_described_with_its_problem(checkpoint):
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "phimoe"}))
    found = inspect_checkpoint(folder)
    assert found.scoring == "sparsemixer"
    assert found.routers_found == 3
    assert "sparsemixer" in found.problem


def test_a_checkpoint_whose_config_contradicts_it(checkpoint):
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_local_experts": 6}))
    found = inspect_checkpoint(folder)
    assert found.problem.startswith("MG-E015")
    assert found.routers_found == 3


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(PathError, match="does not exist"):
        inspect_checkpoint(tmp_path / "absent")
