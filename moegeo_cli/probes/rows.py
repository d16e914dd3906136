"""A sequence as a probe file has it, before any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DOMAIN = 80
FORMATS = "a .jsonl of input_ids or text, a .txt, or a .safetensors of named inputs"


@dataclass(frozen=True, slots=True)
class Row:
    """One of ids, text, and the inputs of a model that takes something else.

    `line` counts from 1; of a table it is the row. `positions` goes with `inputs`.
    """

    line: int
    input_ids: np.ndarray | None = None
    text: str | None = None
    labels: np.ndarray | None = None
    domain: str | None = None
    inputs: Mapping[str, np.ndarray] | None = None
    positions: int = 1


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_domain(name: Any) -> bool:
    """Whether this is a short printable name."""
    return isinstance(name, str) and 0 < len(name) <= MAX_DOMAIN and name.isprintable()


def printable(text: str) -> str:
    """A foreign string in one line, its control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]
