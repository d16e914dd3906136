"""Formulas of quantised values against loops that pack as each form's publication says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moegeo_cli.checkpoints.checkpoint import Checkpoint

GENERATOR = torch.Generator().manual_seed(0)


def made(folder: Path, tensors: dict[str, torch.Tensor], config: str = "{}") -> torch.Tensor:
    (folder / "config.json").write_text(config)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    index = Checkpoint(folder).weights
    assert index.obstacle is None, index.obstacle
    [name] = index.names()
    values: torch.Tensor = index.tensor(name)
    return values


def words(rows: list[list[int]], bits: int) -> torch.Tensor:
    """Each row as one long number, cut into int32 words."""
    packed = []
    for row in rows:
        number = sum(value << (bits * place) for place, value in enumerate(row))
        count = -(-len(row) * bits // 32)
        cut = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
        packed.append([w - (1 << 32) if w >= 1 << 31 else w for w in cut])
    return torch.tensor(packed, dtype=torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("second", [False, True])
def test_gptq(tmp_path: Path, bits: int, second: bool) -> None:
    inputs, outputs, groups = 64, 32, 4
    q = torch.randint(0, 1 << bits, (inputs, outputs), generator=GENERATOR)
    zero = torch.randint(1, 1 << bits, (groups, outputs), generator=GENERATOR)
    scale = torch.rand(groups, outputs, generator=GENERATOR)
    group = torch.randperm(inputs, generator=GENERATOR) % groups
    expected = torch.empty(outputs, inputs)
    for i in range(inputs):
        for o in range(outputs):
            expected[o, i] = (q[i, o] - zero[group[i], o]) * scale[group[i], o]
    config = (
        f'{{"quantization_config": {{"checkpoint_format": "{"gptq_v2" if second else "gptq"}"}}}}'
    )
    found = made(tmp_path, {
        "a.qweight": words(q.T.tolist(), bits).T,
        "a.qzeros": words((zero - (0 if second else 1)).tolist(), bits),
        "a.scales": scale, "a.g_idx": group.int(),
    }, config)  # fmt: skip
    torch.testing.assert_close(found, expected)


def test_awq(tmp_path: Path) -> None:
    inputs, outputs, groups = 16, 24, 2
    q = torch.randint(0, 16, (inputs, outputs), generator=GENERATOR)
    zero = torch.randint(0, 16, (groups, outputs), generator=GENERATOR)
    scale = torch.rand(groups, outputs, generator=GENERATOR)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(values: torch.Tensor) -> torch.Tensor:
        mixed = [[row[8 * w + order[i]] for w in range(outputs // 8) for i in range(8)]
                 for row in values.tolist()]  # fmt: skip
        return words(mixed, 4)

    expected = torch.empty(outputs, inputs)
    for i in range(inputs):
        for o in range(outputs):
            g = i // (inputs // groups)
            expected[o, i] = (q[i, o] - zero[g, o]) * scale[g, o]
    found = made(tmp_path, {"a.qweight": pack(q), "a.qzeros": pack(zero), "a.scales": scale})
    torch.testing.assert_close(found, expected)


def test_mxfp4_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 6, 2, 16), generator=GENERATOR, dtype=torch.uint8)
    scales = torch.randint(120, 134, (3, 6, 2), generator=GENERATOR, dtype=torch.uint8)
    found = made(tmp_path, {"e.down_proj_blocks": blocks, "e.down_proj_scales": scales})
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale_name", ["weight_scale_inv", "scale"])
def test_fp8_blocks_of_128_with_a_cut_last_one(tmp_path: Path, scale_name: str) -> None:
    weight = torch.randn(200, 140, generator=GENERATOR).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 2, generator=GENERATOR)
    expected = torch.empty(200, 140)
    for r in range(200):
        for c in range(140):
            expected[r, c] = weight[r, c].float() * scale[r // 128, c // 128]
    found = made(tmp_path, {"a.weight": weight, f"a.{scale_name}": scale})
    torch.testing.assert_close(found, expected)


def test_nvfp4_of_modelopt(tmp_path: Path) -> None:
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = torch.randint(0, 16, (4, 32), generator=GENERATOR)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    scale = torch.rand(4, 2, generator=GENERATOR).to(torch.float8_e4m3fn)
    second = torch.tensor(0.25)
    expected = torch.empty(4, 32)
    for r in range(4):
        for c in range(32):
            code = int(codes[r, c])
            value = table[code & 7] * (-1 if code & 8 else 1)
            expected[r, c] = value * scale[r, c // 16].float() * second
    parts = {"a.weight": packed, "a.weight_scale": scale, "a.weight_scale_2": second}
    torch.testing.assert_close(made(tmp_path, parts), expected)
