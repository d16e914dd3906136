"""Every tensor of the files is used, known to be unused, or the checkpoint is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

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


# As tools name what turns stored integers and 8-bit floats into values.
SCALES = (
    "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "scale",
    "scale_inv", "qscale_weight", "weight_zero_point", "zero_point", "SCB", "weight_format",
    "weight.absmax", "weight.nested_absmax", "weight.quant_map",
    "weight.quant_state.bitsandbytes__nf4", "scales", "zeros", "qzeros", "g_idx", "weight_g_idx",
    "weight_shape", "weight._scale", "weight._shift", "_weight_scale", "_weight_zero_point",
    "_weight_scale_and_zero",
)  # fmt: skip
BESIDE = ("self_attn.q_proj", "mlp.experts.1.up_proj")


@pytest.mark.parametrize("name", SCALES)
def test_scales_that_nothing_uses_are_refused(name: str, tmp_path: Path, probe: Path) -> None:
    """Of a scheme that the reader does not see: the weights' bytes would not be the values."""
    tensors = load_file(PLAIN / "model.safetensors")
    run = tmp_path / "run"
    shutil.copytree(PLAIN, run / "checkpoint-100")
    beside = {f"model.layers.0.{place}.{name}": torch.ones(3) for place in BESIDE}
    changed(run / "checkpoint-200", {**tensors, **beside})
    options: dict[str, Any] = {"probe": probe, "baseline": "none", "cache": False}
    ways: tuple[tuple[Path, dict[str, Any]], ...] = (
        (run / "checkpoint-200", {}),
        (run, {}),
        (run, {"stream": True}),
    )
    for path, more in ways if name in {"weight_scale", "SCB"} else ways[:1]:
        with pytest.raises(UnsupportedLayoutError, match=r"does not use|quantised") as caught:
            analyze(path, **options, **more)
        said = str(caught.value)
        assert any(place in said for place in beside), said
        assert "scales of quantised weights" in said
        assert "inspect" in said


@pytest.mark.parametrize("name", ["input_scale", "k_scale", "kv_cache.v_scale"])
def test_scales_of_activations_are_left_out_and_said(
    name: str, tmp_path: Path, probe: Path
) -> None:
    tensors = load_file(PLAIN / "model.safetensors")
    options: dict[str, Any] = {"probe": probe, "baseline": "none", "cache": False}
    plain = analyze(PLAIN, **options).checkpoints[0]
    more = {f"model.layers.0.{place}.{name}": torch.tensor(0.5) for place in BESIDE}
    found = analyze(changed(tmp_path / "a", {**tensors, **more}), **options).checkpoints[0]
    assert found.loss == plain.loss
    assert any("scales of activations" in note for note in found.replay["notes"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize("scale", [None, "factor"])
def test_narrow_bytes_without_a_scale_that_is_known_are_refused(
    dtype: torch.dtype, scale: str | None, tmp_path: Path, probe: Path
) -> None:
    tensors = load_file(PLAIN / "model.safetensors")
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    tensors[name] = (tensors[name].float() * 4).to(dtype)
    if scale is not None:
        tensors[f"{name}_{scale}"] = torch.tensor(0.25)
    folder = changed(tmp_path / "a", tensors)
    for stream in (False, True):
        with pytest.raises(UnsupportedLayoutError) as caught:
            analyze(folder, probe=probe, baseline="none", cache=False, stream=stream)
        assert "1.mlp.experts.0.down_proj.weight" in str(caught.value)
