"""The capture format: what a file says, what a folder of files joins to, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moegeo_cli.captures.files import read_captures
from moegeo_cli.errors import ProbeError

ROWS, WIDTH = 6, 4
TENSORS = {
    "sequence": torch.tensor([3, 3, 0, 0, 0, 9]),
    "router.layers.2.gate.inputs": torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH).float(),
    "router.layers.2.gate.selected": torch.zeros(ROWS, 2, dtype=torch.int32),
}


def write(path: Path, tensors: dict[str, Any], **facts: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"moegeo.captures": json.dumps({"version": 1, **facts})})
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.safetensors",
        {**TENSORS, "domains": torch.tensor([1, 1, 0, 0, 0, 7])},
        step=12, fingerprint="abc", training=True, domains=["code", "prose"],
    )  # fmt: skip
    found = read_captures(path)
    assert (found.name, found.step, found.fingerprint) == ("c.safetensors", 12, "abc")
    assert found.lengths == (2, 3, 1)
    assert found.domains == ("prose", "code", "7")  # a number without a name is its own name
    assert "training mode" in found.notes[0]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    [router] = found.routers.values()
    assert (router.path, router.layer) == ("layers.2.gate", 2)
    assert set(router.columns) == {"inputs", "selected"}
    x_ND = router.columns["inputs"].take(np.array([5, 0]))
    np.testing.assert_array_equal(x_ND, TENSORS["router.layers.2.gate.inputs"][[5, 0]].numpy())


@pytest.mark.parametrize("facts", [{}, {"step": -1}, {"step": True}, {"step": 2.0},
                                   {"fingerprint": 3}, {"domains": "code"}])  # fmt: skip
def test_facts_that_are_absent_or_of_no_use_are_not_known(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    found = read_captures(write(tmp_path / "c.safetensors", TENSORS, **facts))
    assert (found.step, found.fingerprint, found.notes) == (None, None, ())
    assert found.domains == (None, None, None)


def test_a_folder_is_joined_in_the_order_of_names(tmp_path: Path) -> None:
    other = {n: t + 100 if n.endswith("inputs") else t for n, t in TENSORS.items()}
    write(tmp_path / "ranks" / "1.safetensors", other, step=4)
    write(tmp_path / "ranks" / "0.safetensors", TENSORS, step=4)
    found = read_captures(tmp_path / "ranks")
    assert (found.name, found.step) == ("ranks", 4)
    assert found.lengths == (2, 3, 1, 2, 3, 1)
    column = found.routers["layers.2.gate"].columns["inputs"]
    assert column.rows == 2 * ROWS
    assert column.take(np.array([0, ROWS]))[:, 0].tolist() == [0, 100]


def test_files_of_different_steps_have_no_step(tmp_path: Path) -> None:
    for rank in (0, 1):
        write(tmp_path / "ranks" / f"{rank}.safetensors", TENSORS, step=rank, fingerprint="same")
    found = read_captures(tmp_path / "ranks")
    assert (found.step, found.fingerprint) == (None, "same")


def test_files_of_different_models_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "0.safetensors", TENSORS)
    wider = {**TENSORS, "router.layers.2.gate.inputs": torch.zeros(ROWS, WIDTH + 1)}
    write(tmp_path / "1.safetensors", wider)
    with pytest.raises(ProbeError, match="not parts of one capture"):
        read_captures(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sequence": None}, "does not say which sequence"),
        ({"sequence": torch.tensor([0, 0, 1, 1, 0, 0])}, "are not contiguous"),
        ({"sequence": torch.zeros(ROWS)}, "one whole number for each row"),
        ({"domains": torch.zeros(3, dtype=torch.int64)}, "one whole number for each row"),
        ({"router.layers.2.gate.inputs": None}, "not a complete capture"),
        ({"router.other.inputs": torch.zeros(ROWS - 1, WIDTH)}, "not a complete capture"),
        ({"router.layers.2.gate.logits": torch.zeros(ROWS)}, "not a table"),
        ({"router.layers.2.gate.selected": torch.zeros(ROWS, 2)}, "not a table"),
        ({"router.layers.2.gate.inputs": torch.zeros(ROWS, 2, dtype=torch.long)}, "not a table"),
        ({"router.b.logits": torch.zeros(ROWS, 4)}, "not a complete capture"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=words):
        read_captures(write(tmp_path / "c.safetensors", {**TENSORS, **change}))


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="holds no captured router inputs") as absent:
        read_captures(tmp_path / "absent.safetensors")
    assert absent.value.found == "no such file"
    with pytest.raises(ProbeError, match="holds no captured router inputs") as empty:
        read_captures(tmp_path)
    assert "in the folder" in str(empty.value.found)
    with pytest.raises(ProbeError, match="of version 1"):
        read_captures(write(tmp_path / "v2.safetensors", TENSORS, version=2))
    save_file(TENSORS, tmp_path / "plain.safetensors")
    with pytest.raises(ProbeError, match="of version 1"):
        read_captures(tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("not a safetensors file")
    with pytest.raises(ProbeError, match="cannot be read as captured router inputs"):
        read_captures(tmp_path / "text.safetensors")
