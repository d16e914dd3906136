"""How one tensor of a model is made from what the files hold of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """One effective tensor.

    Attributes:
        form: a key of `values.FORMULAS`.
        scheme: what the form is called in reports.
        parts: role -> name in the files.
        shape: of the effective tensor.
        settings: block sizes, bits, offsets.
        by_row: parts may be cut along the first dimension, that of experts, before anything else.
    """

    form: str
    scheme: str
    parts: Mapping[str, str]
    shape: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_row: bool = False


class UnreadableFormError(Exception):
    """A form that is recognised and cannot be read; its text says what and why."""
