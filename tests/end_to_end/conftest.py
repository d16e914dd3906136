"""The command line as a user runs it, and probes and runs to run it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import Outcome, call

LENGTHS = [5 + (7 * i) % 29 for i in range(40)]


@pytest.fixture
def moegeo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command: code, stdout and stderr."""
    return partial(call, capsys)


def random_ids(lengths: list[int], seed: int = 0, vocabulary: int = 64) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [[int(v) for v in generator.integers(0, vocabulary, n)] for n in lengths]


def write_probe(path: Path, ids: list[list[int]], domains: list[str] | None = None) -> Path:
    lines = []
    for place, sequence in enumerate(ids):
        row: dict[str, Any] = {"input_ids": sequence}
        if domains:
            row["domain"] = domains[place % len(domains)]
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """Forty sequences of unequal length."""
    return write_probe(tmp_path / "probe.jsonl", random_ids(LENGTHS))
