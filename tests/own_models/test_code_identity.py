"""Measurements are kept only of code that can be told again."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from moegeo_cli import analyze, experts
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.models.code_identity import why_unidentified
from moegeo_cli.reports import render
from tests.own_models import models
from tests.own_models.test_factory import ROUTERS

SOURCE = """
from tests.own_models import models
def build(config):
    return models.Causal()
class Built(models.Causal):
    def __init__(self, config=None):
        super().__init__()
    @classmethod
    def make(cls, config):
        return cls()
    def own(self, config):
        return self
"""


def scaled(scale: float) -> Callable[..., Any]:
    """One function, two closures: they build models that give other numbers."""

    def build(config: Any) -> torch.nn.Module:
        class Scaled(models.Causal):
            def forward(self, idx: torch.Tensor) -> Any:
                return super().forward(idx)[0] * scale

        return Scaled()

    return build


def wide(config: Any, scale: float) -> torch.nn.Module:
    return models.Causal()


class Maker:
    def __call__(self, config: Any) -> torch.nn.Module:
        return models.Causal()


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_code_to_identify.py").write_text(SOURCE)
    sys.path.insert(0, str(tmp_path / "code"))
    yield importlib.import_module("my_code_to_identify")
    sys.path.remove(str(tmp_path / "code"))
    del sys.modules["my_code_to_identify"]


def test_code_of_a_module_is_identified(module: ModuleType) -> None:
    for factory in (module.build, module.Built, module.Built.make, "my_code_to_identify:build"):
        assert why_unidentified(factory) is None
    assert (
        choose_models(module.build).identity == choose_models("my_code_to_identify:build").identity
    )


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (scaled(1.0), "within a function"),
        (lambda config: models.Causal(), "lambda"),
        (functools.partial(wide, scale=2.0), "functools.partial"),
        (Maker(), "values that cannot be told"),
        (Maker().__call__, "values that cannot be told"),
    ],
)
def test_code_with_values_of_its_own_is_not(factory: Callable[..., Any], why: str) -> None:
    assert why in (why_unidentified(factory) or "")


def test_code_that_was_changed_since_its_import_is_not(module: ModuleType) -> None:
    file = Path(module.__file__ or "")
    old = module.build
    exec(SOURCE.replace("Causal()", "Causal('sigmoid')"), vars(module))  # redefined in a notebook
    assert "changed since it was imported" in (why_unidentified(module.build) or "")
    assert "under this name" in (why_unidentified(old) or "")
    importlib.reload(module)
    assert why_unidentified("my_code_to_identify:build") is None
    file.write_text(SOURCE.replace("Causal()", "Causal('sigmoid')"))
    assert "changed since it was imported" in (why_unidentified("my_code_to_identify:build") or "")


def test_code_of_no_file_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ModuleType("__cell__")
    monkeypatch.setitem(sys.modules, "__cell__", cell)
    exec("def build(config): ...", vars(cell))
    assert "in no file" in (why_unidentified(cell.build) or "")


def test_two_closures_do_not_share_a_measurement(tmp_path: Path) -> None:
    torch.save(models.spread(models.Causal(), 0).state_dict(), tmp_path / "weights.pt")
    probe = tmp_path / "probe.jsonl"
    probe.write_text(
        "".join(json.dumps({"input_ids": [3, 1, 2, 5, 7 + n]}) + "\n" for n in range(8))
    )
    kept = tmp_path / "kept"
    options: dict[str, Any] = {
        "router": ROUTERS, "top_k": 2, "scoring": "softmax", "probe": probe, "cache_dir": kept,
    }  # fmt: skip
    runs = [
        analyze(tmp_path / "weights.pt", model=scaled(scale), baseline="none", **options)
        for scale in (1.0, 3.0)
    ]
    assert runs[0].checkpoints[0].loss != runs[1].checkpoints[0].loss
    assert not kept.exists()
    said = json.loads(render(runs[0], "json"))["run"]["notes"]
    assert any("not kept" in note and "within a function" in note for note in said)
    record = experts(tmp_path / "weights.pt", model=scaled(1.0), **options)
    assert any("not kept" in note for note in record.notes)
    assert not kept.exists()
