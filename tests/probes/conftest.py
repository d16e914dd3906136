"""Probe files and tokenizers made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.probes import Probe, load_probe

CORPUS = [
    "the router sends a token to two experts",
    "a probe is read by every checkpoint of a run",
    "for place in range(10): print(place)",
]


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Write rows, or raw lines, as a probe file."""

    def write(*rows: Any, name: str = "probe.jsonl") -> Path:
        path = tmp_path / name
        texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkpoint's folder without a tokenizer."""
    path = tmp_path / "run" / "checkpoint-1"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def load(bare: Path) -> Callable[..., Probe]:
    """Load for a model of 256 bytes without a tokenizer, unless told otherwise."""

    def call(path: Path | None, **options: Any) -> Probe:
        return load_probe(path, **{"vocab_size": 256, "tokenizer_dir": bare, **options})

    return call


def save_tokenizer(folder: Path, corpus: list[str] = CORPUS, size: int = 120) -> Path:
    """Train a tiny byte-level BPE, as checkpoints have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
