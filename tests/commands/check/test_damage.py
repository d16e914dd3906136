"""Headers, values and configs damaged at random: an error of ours or a verdict, never a crash."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moegeo_cli import check
from moegeo_cli.errors import MoegeoError
from moegeo_cli.reports import render
from tests.tiny_models import save_tiny

ODD: tuple[Any, ...] = (None, -1, 0, 1, 2**40, "x", [], {}, [1, 2], 1.5, True, "")
PER_FLOAT = {"BF16": 2, "F16": 2, "I32": 1, "U8": 4, "F8_E4M3": 4, "I64": 1, "BOOL": 4}
CASES = 12


def damage_config(path: Path, chance: random.Random) -> None:
    config = json.loads(path.read_text())
    for _ in range(chance.randint(1, 3)):
        key = chance.choice(sorted(config))
        if chance.random() < 0.3:
            del config[key]
        else:
            config[key] = chance.choice(ODD)
    path.write_text(json.dumps(config))


def damage_weights(path: Path, chance: random.Random) -> None:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + size]), bytearray(raw[8 + size :])
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(sorted(n for n in header if "mlp" in n))
        entry = header[name]
        match chance.randrange(5):
            case 0:
                del header[name]
            case 1:
                suffix = chance.choice([".weight", "_scale", ".weight_scale_inv", "_blocks"])
                header[name + suffix] = header.pop(name)
            case 2:
                flat = [int(np.prod(entry["shape"]))]
                entry["shape"] = chance.choice([entry["shape"][::-1], flat])
            case 3:
                entry["dtype"] = chance.choice(sorted(PER_FLOAT))
                entry["shape"][-1] *= PER_FLOAT[entry["dtype"]]
            case _:
                start, end = entry["data_offsets"]
                for place in range(start, min(end, start + 64)):
                    body[place] = chance.choice([0, 255, 127, 128])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_damage_is_an_error_or_a_verdict(model_type: str, tmp_path: Path) -> None:
    whole = save_tiny(model_type, tmp_path / "whole")
    chance = random.Random(model_type)
    judged = 0
    for case in range(CASES):
        path = Path(shutil.copytree(whole, tmp_path / str(case)))
        if chance.random() < 0.4:
            damage_config(path / "config.json", chance)
        else:
            damage_weights(path / "model.safetensors", chance)
        try:
            record = check(path)  # which is kept
        except MoegeoError:
            continue
        assert render(record, "json") == render(check(path), "json")
        judged += 1
    assert 0 < judged < CASES
