"""Text into token ids, with the checkpoint's own tokenizer or as bytes; nothing is executed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError

BYTES = 256
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`encode` turns a text into ids; `name` is "bytes" or the hash of the tokenizer's file."""

    name: str
    encode: Callable[[str], np.ndarray]


def tokenizer_sha256(folder: Path) -> str | None:
    """The hash of a checkpoint's tokenizer, None where it has none."""
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def open_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint; bytes where its vocabulary is bytes.

    Args:
        folder: the checkpoint, or the run above it.
        vocab_size: of the model.

    Raises:
        ProbeError: neither a tokenizer nor a vocabulary of bytes, or a damaged tokenizer.
    """
    for place in (folder, folder.parent):
        digest = tokenizer_sha256(place)
        if digest is not None:
            return Tokenizer(digest, _open(place))
    if vocab_size == BYTES:
        return Tokenizer("bytes", _bytes)
    raise ProbeError(
        "the probe is text, and the checkpoint has no tokenizer",
        found=f"a vocabulary of {vocab_size:,} and no {TOKENIZER_FILES[0]}",
        hint="put the tokenizer's files into the checkpoint, or give a --probe of input_ids",
    )


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64)


def _open(folder: Path) -> Callable[[str], np.ndarray]:
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as Fast

        try:
            fast = Fast.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            raise ProbeError(
                "the checkpoint's tokenizer.json cannot be read", found=str(error)[:200]
            ) from error
        fast.no_padding()
        fast.no_truncation()
        return lambda text: np.array(fast.encode(text).ids, dtype=np.int64)
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes it raise
        raise ProbeError(
            "the checkpoint's tokenizer cannot be opened",
            found=str(error)[:200],
            hint="save it as tokenizer.json, or give a --probe of input_ids",
        ) from error
    return lambda text: np.array(slow(text)["input_ids"], dtype=np.int64)
