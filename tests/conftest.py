"""Shared fixtures: tiny saved models, one a type and session."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Imports make little garbage and a million objects that live to the end: none is looked at while
# tests are collected, nor later (pytest_collection_finish).
gc.disable()
# Before torch is imported; what the tests start inherits it. Processes share the cores.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later collection of garbage."""
    import hypothesis  # noqa: F401 - its plugin does at the end, and would not find what is left out

    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A saved tiny checkpoint by model type and seed, made once a session."""
    from tests.tiny_models import save_tiny

    root = tmp_path_factory.mktemp("tiny")

    def get(model_type: str, seed: int = 0) -> Path:
        path = root / f"{model_type}-{seed}"
        if not path.exists():
            save_tiny(model_type, path, seed)
        return path

    return get
