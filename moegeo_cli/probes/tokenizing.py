"""Turn text into token ids, with the checkpoint's own tokenizer or as bytes.

No code of the checkpoint is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError

BYTES = 256
BYTE_LEVEL = "bytes"
FAST = "tokenizer.json"
# Files of tokenizers that have no tokenizer.json.
OTHERS = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
MAX_TOKENIZER_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`encode` turns a text into ids; `name` is "bytes" or the tokenizer's hash."""

    name: str
    encode: Callable[[str], np.ndarray]


def find_tokenizer(folder: Path) -> Path | None:
    """The folder with the checkpoint's tokenizer: the checkpoint itself or the run above it.

    Returns:
        None if neither has one.
    """
    for place in (folder, folder.absolute().parent):
        if any((place / name).is_file() for name in (FAST, *OTHERS)):
            return place
    return None


def tokenizer_sha256(folder: Path) -> str | None:
    """The hash of a checkpoint's tokenizer; None if it has none.

    The hash ignores padding and truncation, which a training script may leave in tokenizer.json,
    and the file's whitespace and order of keys.

    Raises:
        ProbeError: a damaged tokenizer.json.
    """
    place = find_tokenizer(folder)
    if place is None:
        return None
    if (place / FAST).is_file():
        return _hash_fast(_read(place / FAST))
    digest = hashlib.sha256()
    for name in OTHERS:
        if (place / name).is_file():
            digest.update(f"{name}\0".encode() + hashlib.sha256(_read(place / name)).digest())
    return digest.hexdigest()


def open_tokenizer(folder: Path, vocab_size: int | None) -> Tokenizer:
    """The tokenizer of a checkpoint; bytes if it has none and the vocabulary has 256 ids.

    Args:
        folder: the checkpoint; the tokenizer may also be in the run folder above it.
        vocab_size: vocabulary size of the model; None if unknown.

    Raises:
        ProbeError: neither a tokenizer nor a vocabulary of bytes, or a damaged tokenizer.
    """
    place = find_tokenizer(folder)
    if place is not None:
        digest = tokenizer_sha256(folder)
        assert digest is not None
        return Tokenizer(digest, _open(place))
    if vocab_size == BYTES:
        return Tokenizer(BYTE_LEVEL, _bytes)
    raise ProbeError(
        "the probe is text, and the checkpoint has no tokenizer",
        found=f"a vocabulary of {'unknown size' if vocab_size is None else f'{vocab_size:,}'} "
        f"and no {FAST}",
        hint="put the tokenizer's files into the checkpoint or the run (or beside the config.json "
        "that --config names), or give a --probe of input_ids",
    )


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ProbeError(f"the checkpoint's {path.name} is too large to be a tokenizer")
        return path.read_bytes()
    except OSError as error:
        raise ProbeError(
            f"the checkpoint's {path.name} cannot be read", found=error.strerror
        ) from error


def _hash_fast(data: bytes) -> str:
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        kept = {k: v for k, v in document.items() if k not in {"padding", "truncation"}}
        text = json.dumps(kept, sort_keys=True)
    except (ValueError, RecursionError) as error:
        raise _damaged(FAST, error) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _open(folder: Path) -> Callable[[str], np.ndarray]:
    if (folder / FAST).is_file():
        from tokenizers import Tokenizer as Fast

        try:
            fast = Fast.from_file(str(folder / FAST))
            fast.no_padding()
            fast.no_truncation()
        except Exception as error:  # the library raises bare Exceptions
            raise _damaged(FAST, error) from error
        return lambda text: np.array(_attempt(lambda: fast.encode(text).ids), dtype=np.int64)
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise _damaged("tokenizer", error) from error
    return lambda text: np.array(_attempt(lambda: slow(text)["input_ids"]), dtype=np.int64)


def _attempt(encode: Callable[[], list[int]]) -> list[int]:
    try:
        return encode()
    except Exception as error:  # a model without an unknown token raises a bare Exception
        raise ProbeError(
            "the checkpoint's tokenizer cannot encode a passage of the probe",
            found=str(error)[:200],
            hint="give a --probe of input_ids",
        ) from error


def _damaged(name: str, error: Exception) -> ProbeError:
    return ProbeError(
        f"the checkpoint's {name} cannot be opened",
        found=str(error)[:200],
        hint=f"save the tokenizer again as {FAST}, or give a --probe of input_ids",
    )
