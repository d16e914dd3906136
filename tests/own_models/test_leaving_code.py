"""A user's code that leaves the process, or raises what no handler expects, is a clear error."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays

from moegeo_cli import analyze
from moegeo_cli.errors import ProbeError, UnsupportedArchitectureError, UsageError
from tests.command import call
from tests.own_models import models

OPTIONS: dict[str, Any] = {
    "router": "blocks.*.gate", "top_k": models.CHOSEN, "scoring": "softmax", "baseline": "none",
}  # fmt: skip
AT_IMPORT = ("import sys; sys.exit(3)", "raise SystemExit", "raise GeneratorExit", "1 / 0", "def (",
             "class Own(BaseException): pass\nraise Own('hm')")  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.save(models.spread(models.Causal(), 0).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def write_probe(path: Path, labels: Callable[[list[int]], Any] = lambda ids: None) -> Path:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, models.VOCABULARY, 12).tolist() for _ in range(6)]
    rows = [{"input_ids": ids, "labels": labels(ids)} for ids in sequences]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("place", ["module", "package"])
@pytest.mark.parametrize("code", AT_IMPORT)
def test_a_module_that_leaves_at_import(
    code: str, place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, name = tmp_path / "leaving_module.py", "leaving_module"
    if place == "package":
        file, name = tmp_path / "leaving_package" / "__init__.py", "leaving_package.inner"
        file.parent.mkdir()
    file.write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = call(capsys, "analyze", run, "--model", f"{name}:build", "--probe",
                 write_probe(tmp_path / "p.jsonl"), "--router", "blocks.*.gate", "--top-k", 2,
                 "--scoring", "softmax")  # fmt: skip
    assert found.code == 2
    assert f"--model {name}:build cannot be imported" in found.err


def leaves_at_once(config: Any) -> torch.nn.Module:
    raise SystemExit(4)


class LeavesInForward(models.Causal):
    def forward(self, idx: torch.Tensor) -> Any:
        raise SystemExit("no more")


def test_a_factory_or_a_forward_that_leaves(run: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match="fails to build") as caught:
        analyze(run, probe=probe, model=leaves_at_once, **OPTIONS)
    assert "SystemExit: 4" in str(caught.value)
    with pytest.raises(UnsupportedArchitectureError, match="model's own code") as later:
        analyze(run, probe=probe, model=lambda config: LeavesInForward(), **OPTIONS)
    assert "SystemExit: no more" in str(later.value)


def test_a_partial_is_a_factory(run: Path, tmp_path: Path) -> None:
    def build(config: Any, *, scoring: str) -> torch.nn.Module:
        return models.Causal(scoring)

    probe = write_probe(tmp_path / "p.jsonl")
    factory = functools.partial(build, scoring="softmax")
    found = analyze(run, probe=probe, model=factory, **OPTIONS)
    plain = analyze(run, probe=probe, model=lambda config: models.Causal(), **OPTIONS)
    assert found.checkpoints[0].loss == plain.checkpoints[0].loss
    assert "functools.partial" in " ".join(found.run["notes"])


@pytest.mark.parametrize("label", [-1, -2, -101, models.VOCABULARY, 2**40])
def test_a_label_that_is_none(label: int, run: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "p.jsonl", lambda ids: [ids[0], label, *ids[2:]])
    with pytest.raises(ProbeError, match="label") as caught:
        analyze(run, probe=probe, model=lambda config: models.Causal(), **OPTIONS)
    assert str(label) in str(caught.value)


def test_a_label_of_minus_100_is_no_loss(run: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "p.jsonl", lambda ids: [-100, -100, *ids[2:]])
    found = analyze(run, probe=probe, model=lambda config: models.Causal(), **OPTIONS)
    assert found.checkpoints[0].loss.n == 6 * 10


def test_a_sample_with_a_negative_label(tmp_path: Path) -> None:
    model = models.spread(models.positions_first(None), 0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    rng = np.random.default_rng(1)
    arrays = {"patches": rng.normal(size=(20, 6, 3)).astype(np.float32),
              "labels": rng.integers(0, 4, 20) - 1}  # fmt: skip
    save_arrays(arrays, tmp_path / "p.safetensors", metadata={"positions": "6"})
    with pytest.raises(ProbeError, match="label"):
        analyze(tmp_path / "weights.pt", probe=tmp_path / "p.safetensors",
                model="tests.own_models.models:positions_first", router="block.gate", top_k=2,
                scoring="softmax", cache=False)  # fmt: skip
