"""Rows of captured inputs: read across blocks, in the dtype that was saved, and as a probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moegeo_cli.captures.rows import CapturedRouter, Captures, Column, map_file


def column(*blocks: np.ndarray) -> Column:
    found = Column(blocks[0].shape[1])
    for block in blocks:
        found.add(block)
    return found


def test_rows_are_read_across_blocks_in_any_order() -> None:
    whole_TD = np.arange(14, dtype=np.float32).reshape(7, 2)
    found = column(whole_TD[:3], whole_TD[3:4], whole_TD[4:])
    assert (found.rows, found.starts) == (7, [0, 3, 4])
    rows_N = np.array([6, 0, 3, 2, 4, 6])
    np.testing.assert_array_equal(found.take(rows_N), whole_TD[rows_N])
    assert found.take(np.zeros(0, dtype=np.int64)).shape == (0, 2)


@pytest.mark.parametrize(
    ("dtype", "stored", "read"),
    [
        ("float16", np.float16, np.float32),
        ("float32", np.float32, np.float32),
        ("int32", np.int32, np.int64),
    ],
)
def test_a_column_is_read_as_float32_or_int64(dtype: str, stored: type, read: type) -> None:
    found = column(np.array([[1, 2], [3, 4]], dtype=stored))
    assert found.dtype == dtype
    values = found.take(np.array([1]))
    assert values.dtype == read
    assert values.tolist() == [[3, 4]]


def test_bfloat16_is_read_exactly() -> None:
    values = torch.tensor([[0.1, -3.0], [1e30, 0.0]]).bfloat16()
    found = column(values.view(torch.int16).numpy().view(np.uint16))
    assert found.dtype == "bfloat16"
    np.testing.assert_array_equal(found.take(np.arange(2)), values.float().numpy())


def test_the_probe_has_the_captured_sequences() -> None:
    router = CapturedRouter("gate", 0, {"inputs": column(np.zeros((5, 2), np.float32))})
    captures = Captures("c", {"gate": router}, (2, 3), ("code", None), "0" * 64)
    probe = captures.probe()
    assert [s.tokens for s in probe.sequences] == [2, 3]
    assert [s.domain for s in probe.sequences] == ["code", None]
    assert [s.inputs["rows"].tolist() for s in captures.probe().sequences] == [[0, 1], [2, 3, 4]]


def test_an_empty_file_is_mapped_as_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "three").write_bytes(b"abc")
    assert map_file(tmp_path / "empty").size == 0
    assert map_file(tmp_path / "three").tobytes() == b"abc"
