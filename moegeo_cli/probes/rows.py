"""A sequence as a probe file has it, before any tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FORMATS = "a .jsonl of input_ids or text, a .txt, or a .safetensors with input_ids"


@dataclass(frozen=True, slots=True)
class Row:
    """Either ids or text. `line` counts from 1; of a table it is the row."""

    line: int
    input_ids: np.ndarray | None = None
    text: str | None = None
    labels: np.ndarray | None = None
    domain: str | None = None


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A foreign string in one line, its control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]
