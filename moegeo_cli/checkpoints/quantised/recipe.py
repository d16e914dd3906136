"""`Recipe`: how one tensor of the model is dequantised from stored tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one tensor is dequantised.

    Attributes:
        form: a key of `values.FORMULAS`.
        scheme: the form's name in reports.
        parts: role -> name in the files.
        shape: shape of the dequantised tensor.
        settings: block sizes, bits, offsets.
        by_row: whether rows of the first dimension (the experts) can be dequantised alone.
    """

    form: str
    scheme: str
    parts: Mapping[str, str]
    shape: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_row: bool = False


class UnreadableFormError(Exception):
    """A form is recognised but cannot be read; the message names it and says why."""
