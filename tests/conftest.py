"""Shared fixtures: tiny saved models, one a type and session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported; what the tests start inherits it. Processes share the cores.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
