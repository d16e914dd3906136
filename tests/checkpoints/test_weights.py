import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.checkpoints.indexes import read_index
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    UnsafeFileError,
)

ROUTER = "model.layers.1.block_sparse_moe.gate.weight"


def test_a_single_file(masters):
    index = open_weights(masters / "mixtral")
    assert index.layout == "safetensors"
    assert ROUTER in index
    assert "other" not in index
    assert index.shape(ROUTER) == (4, 16)
    assert index.dtype(ROUTER) == "F32"
    assert index.names() == tuple(sorted(index.names()))
    assert index.parameters == sum(int(np.prod(index.shape(n))) for n in index.names())
    assert index.dtype_counts == {"F32": index.parameters}
    assert index.file_of(ROUTER).name == "model.safetensors"


def test_shards_hold_together_what_the_index_names(masters):
    from safetensors.torch import load_file

    index = open_weights(masters / "deepseek")
    assert index.layout == "safetensors-sharded"
    assert len(index.files) > 2
    expected = {}
    for path in index.files:
        expected |= load_file(path)
    assert set(index.names()) == set(expected)
    for name in index.names():
        np.testing.assert_array_equal(index.read(name), expected[name].float().numpy())


def test_pickled_weights_equal_safetensors(masters):
    pickled, plain = open_weights(masters / "pickled"), open_weights(masters / "mixtral")
    assert pickled.layout == "pytorch"
    assert pickled.names() == plain.names()
    for name in plain.names():
        assert pickled.shape(name) == plain.shape(name)
        assert pickled.dtype(name) == plain.dtype(name)
        np.testing.assert_array_equal(pickled.read(name), plain.read(name))


def test_sharded_and_legacy_pickles(masters, checkpoint):
    import torch

    folder = checkpoint("pickled")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for number, (file, part) in enumerate(parts.items()):
        torch.save(
            {n: state[n].bfloat16() for n in part},
            folder / file,
            _use_new_zipfile_serialization=bool(number),
        )
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    index = open_weights(folder)
    assert index.layout == "pytorch-sharded"
    assert index.names() == tuple(names)
    assert index.dtype(ROUTER) == "BF16"
    np.testing.assert_array_equal(index.read(ROUTER), state[ROUTER].bfloat16().float().numpy())


def test_a_tensor_that_is_not_there(masters):
    with pytest.raises(IncompleteCheckpointError, match=r"layers\.9"):
        open_weights(masters / "mixtral").read("model.layers.9.gate.weight")


def test_a_missing_shard_is_named(checkpoint):
    folder = checkpoint("deepseek")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(IncompleteCheckpointError, match=shard.name):
        open_weights(folder)


def test_a_truncated_shard_is_named(checkpoint):
    folder = checkpoint("deepseek")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IncompleteCheckpointError, match=shard.name):
        open_weights(folder)


def test_a_shard_without_a_tensor_of_the_index(checkpoint):
    folder = checkpoint("deepseek")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = sorted(index["weight_map"].values())[0]
    path.write_text(json.dumps(index))
    with pytest.raises(IncompleteCheckpointError, match=r"model\.extra"):
        open_weights(folder)


def test_shards_without_an_index(checkpoint):
    folder = checkpoint("deepseek")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"no model\.safetensors\.index\.json"):
        open_weights(folder)


def test_no_weights(tmp_path):
    with pytest.raises(NoCheckpointError, match="holds no weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../other/model.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:x", "a\0b", ""],
)
def test_an_index_that_leads_out_of_the_folder(tmp_path, shard):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(
        UnsafeFileError,
        match=r"model\.safetensors\.index\.json points outside the checkpoint's folder",
    ):
        read_index(path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}',
     "[" * 100_000],
)  # fmt: skip
def test_a_broken_index(tmp_path, content):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(IncompleteCheckpointError, match=r"model\.safetensors\.index\.json"):
        open_weights(tmp_path)


NAMES = st.text(max_size=6) | st.sampled_from(["model.safetensors", "../x", "/x", "."])


@settings(max_examples=200, deadline=None)
@given(
    document=st.one_of(
        st.none(),
        st.lists(st.integers(), max_size=2),
        st.fixed_dictionaries({"weight_map": st.dictionaries(NAMES, NAMES, max_size=4)}),
        st.dictionaries(st.sampled_from(["weight_map", "metadata"]), NAMES | st.integers()),
    )
)
def test_any_index_ends_in_a_clean_error(masters, tmp_path_factory, document):
    folder = tmp_path_factory.getbasetemp() / "fuzz-index"
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        shutil.copy(masters / "mixtral" / "model.safetensors", folder)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(document))
    try:
        for file in read_index(path):
            assert folder in file.absolute().parents or file == folder / "."
    except MoegeoError:
        pass


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(checkpoint, tmp_path, zipped):
    import torch

    folder = checkpoint("pickled")
    mark = tmp_path / "ran"
    torch.save(
        {"a": torch.ones(2), "b": Payload(mark)},
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UnsafeFileError, match="code"):
        open_weights(folder).names()
    assert not mark.exists()


def test_a_bare_pickle_that_would_run_code(checkpoint, tmp_path):
    folder = checkpoint("pickled")
    mark = tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload(mark)}))
    with pytest.raises(
        MoegeoError,
        match=r"pytorch_model\.bin is not a file that torch\.save wrote, or it is damaged",
    ):
        open_weights(folder).names()
    assert not mark.exists()


def test_truncated_pickles(checkpoint):
    folder = checkpoint("pickled")
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for cut in (0, 3, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(IncompleteCheckpointError, match=r"pytorch_model\.bin is"):
            open_weights(folder).names()


def test_a_pickle_of_something_else(checkpoint):
    import torch

    folder = checkpoint("pickled")
    for thing in ([1, 2], {"a": 3}, {}):
        torch.save(thing, folder / "pytorch_model.bin")
        with pytest.raises(
            IncompleteCheckpointError, match=r"pytorch_model\.bin is truncated or not a state dict"
        ):
            open_weights(folder).names()


def test_torch_stays_out_until_a_pickle_is_opened(masters):
    code = (
        "import sys\n"
        "from moegeo_cli.commands.inspect import describe\n"
        f"describe.inspect_checkpoint({str(masters / 'mixtral')!r})\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
