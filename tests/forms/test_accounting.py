"""Every tensor of the files is used, known to be unused, or the checkpoint is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze
from moegeo_cli.errors import IncompleteCheckpointError

PLAIN = Path(__file__).parent / "files" / "plain"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    rows = torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


def changed(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The plain checkpoint with other tensors."""
    shutil.copytree(PLAIN, folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_parameter_under_a_known_but_wrong_name_is_named(tmp_path: Path, probe: Path) -> None:
    """`router` is a router's name in other families than this one."""
    tensors = load_file(PLAIN / "model.safetensors")
    old, new = ".mlp.gate.weight", ".mlp.router.weight"
    folder = changed(tmp_path / "a", {n.replace(old, new): t for n, t in tensors.items()})
    with pytest.raises(IncompleteCheckpointError) as caught:
        analyze(folder, probe=probe, baseline="none", cache=False)
    found = caught.value.found or ""
    assert "model.layers.0.mlp.router.weight" in found
    assert "has the shape of the missing model.layers.0.mlp.gate.weight" in found
