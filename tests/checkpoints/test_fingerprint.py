import json
import time

import pytest

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.fingerprint import BLOCK_BYTES, _block_offsets
from moegeo_cli.checkpoints.headers import read_header
from moegeo_cli.errors import UsageError


def take(folder, mode="sampled"):
    return open_run(folder).newest.fingerprint(mode)


def flip(path, offset):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_copies_agree_wherever_they_lie(checkpoint):
    first, second = checkpoint(to="a/checkpoint-1"), checkpoint(to="b/checkpoint-9")
    (second / "optimizer.pt").write_bytes(b"x")
    for mode in ("sampled", "full"):
        assert take(first, mode) == take(second, mode)
        assert len(take(first, mode)) == 64
    assert take(first) != take(first, "full")


@pytest.mark.parametrize("mode", ["sampled", "full"])
@pytest.mark.parametrize("master", ["mixtral", "deepseek", "pickled"])
def test_every_part_counts(checkpoint, mode, master):
    folder = checkpoint(master)
    seen = {take(folder, mode)}
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    for path in weights:
        flip(path, path.stat().st_size // 2)
        seen.add(take(folder, mode))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "router_aux_loss_coef": 0.5}))
    seen.add(take(folder, mode))
    assert len(seen) == 2 + len(weights)


def test_a_router_is_hashed_whole(checkpoint, monkeypatch):
    folder = checkpoint()
    monkeypatch.setattr("moegeo_cli.checkpoints.fingerprint._block_offsets", lambda *_: [])
    before = take(folder)
    path = folder / "model.safetensors"
    info = read_header(path).tensors["model.layers.2.block_sparse_moe.gate.weight"]
    flip(path, info.end - 1)
    assert take(folder) != before


def test_blocks_cover_small_files_and_stay_inside_large_ones():
    assert _block_offsets(8, 8 + 3 * BLOCK_BYTES) == [8 + n * BLOCK_BYTES for n in range(3)]
    size = 10**12
    offsets = _block_offsets(1000, size)
    assert offsets == _block_offsets(1000, size)
    assert len(offsets) == 64
    assert min(offsets) >= 1000
    assert max(offsets) + BLOCK_BYTES <= size
    assert _block_offsets(0, 0) == []


def test_sampling_is_fast_on_a_large_file(checkpoint):
    folder = checkpoint()
    path = folder / "model.safetensors"
    header = {"w": {"dtype": "U8", "shape": [2**33], "data_offsets": [0, 2**33]}}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**33)  # sparse: no disk is used
    begin = time.perf_counter()
    Checkpoint(folder).fingerprint()
    assert time.perf_counter() - begin < 2


def test_an_unknown_mode(masters):
    with pytest.raises(UsageError, match="no fingerprint mode 'fast'"):
        take(masters / "mixtral", "fast")
