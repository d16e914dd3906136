"""The trace of Megatron-LM's router tracer: how steps and ranks are joined, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moegeo_cli.captures.files import read_captures
from moegeo_cli.errors import ProbeError

WIDTH, CHOSEN = 4, 2
ONE = np.float32(1.0).view(np.uint32) >> np.uint32(16)  # 1.0 in bfloat16


def record(step: int, layer: int, rank: int, rows: np.ndarray, offset: int) -> dict[str, Any]:
    """A record of inputs that lie at `offset` of the rank's file."""
    return {"step": step, "block": "decoder", "layer": layer, "rank": rank, "num_tokens": len(rows),
            "topk": CHOSEN, "hs_offset": offset, "hs_bytes": rows.nbytes,
            "hs_shape": list(rows.shape), "top_indices": [[0, 1]] * len(rows)}  # fmt: skip


def write(folder: Path, rank: int, steps: list[int], *, layers: int = 2, fill: int = 0,
          **changes: Any) -> None:  # fmt: skip
    """A trace of `steps[i]` tokens in step i; inputs are 1.0 in bfloat16, plus `fill` bits."""
    lines, data = [], b""
    for step, tokens in enumerate(steps):
        for layer in range(layers):
            rows = np.full((tokens, WIDTH), int(ONE) + fill + step, dtype=np.uint16)
            lines.append({**record(step, layer, rank, rows, len(data)), **changes})
            data += rows.tobytes()
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"router_trace_rank{rank}.jsonl").write_text(text)
    (folder / f"hidden_states_rank{rank}.bin").write_bytes(data)


def test_a_step_on_a_rank_is_a_sequence(tmp_path: Path) -> None:
    write(tmp_path, 0, [3, 2])
    write(tmp_path, 1, [4], fill=64)
    found = read_captures(tmp_path)
    assert found.lengths == (3, 2, 4)
    assert list(found.routers) == [f"decoder.layers.{layer}.mlp.router" for layer in (0, 1)]
    columns = found.routers["decoder.layers.1.mlp.router"].columns
    assert set(columns) == {"inputs", "selected"}
    assert columns["inputs"].dtype == "bfloat16"
    x_TD = columns["inputs"].take(np.arange(9))
    assert x_TD[:3].tolist() == [[1.0] * WIDTH] * 3
    assert (x_TD[3:] > 1.0).all()
    assert columns["selected"].take(np.array([8])).tolist() == [[0, 1]]


def test_ranks_with_the_same_tokens_count_once(tmp_path: Path) -> None:
    write(tmp_path, 0, [3, 2])
    write(tmp_path, 1, [3, 2])
    found = read_captures(tmp_path)
    assert found.lengths == (3, 2)
    assert any("2 of 4 ranks' steps repeat another" in note for note in found.notes)


def test_multi_token_prediction_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 0, [3])
    file = tmp_path / "router_trace_rank0.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    file.write_text(file.read_text() + json.dumps({**first, "block": "mtp"}) + "\n")
    found = read_captures(tmp_path)
    assert found.lengths == (3,)
    assert any("1 records of multi-token prediction" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": -1}, "not a record of a router"),
        ({"topk": "2"}, "not a record of a router"),
        ({"block": None}, "not a record of a router"),
        ({"hs_bytes": 10**6}, "does not hold what the record points to"),
        ({"hs_shape": [3]}, "does not hold what the record points to"),
        ({"top_indices": [[0, 1]]}, "are not num_tokens"),
        ({"top_indices": [["a", "b"]] * 3}, "are not num_tokens"),
        ({"step": 0, "layer": 0}, "the same step and layer twice"),
    ],
)
def test_a_damaged_trace_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path, 0, [3], **changes)
    with pytest.raises(ProbeError, match="the routing trace is damaged") as caught:
        read_captures(tmp_path)
    assert words in str(caught.value.found)


def test_a_trace_without_inputs_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 0, [3])
    file = tmp_path / "router_trace_rank0.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        del line["hs_offset"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ProbeError, match="without the routers' inputs"):
        read_captures(tmp_path)


def test_a_layer_that_is_missing_on_a_rank_is_refused(tmp_path: Path) -> None:
    """Under pipeline parallelism each rank holds some layers, and numbers them from 0."""
    write(tmp_path, 0, [3], layers=2)
    write(tmp_path, 1, [3], layers=1, fill=64)
    with pytest.raises(ProbeError, match="layer 1 of the trace is missing"):
        read_captures(tmp_path)
