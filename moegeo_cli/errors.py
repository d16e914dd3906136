"""Every error that moegeo raises on purpose: a code, what was found, and what to do next.

Only the command line turns errors into text and an exit code. Codes do not change between
versions, so that scripts and issue reports can name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MoegeoError(Exception):
    """The base class: an error that the user can understand and act on.

    Args:
        message: what went wrong, in one sentence.
        found: what was found instead, for example the names that exist.
        hint: the next command to run, or what to change.
        context: further facts, for programs.
    """

    code = "MG-E000"
    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        found: str | None = None,
        hint: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.found = found
        self.hint = hint
        self.context = dict(context or {})

    def __str__(self) -> str:
        parts = [f"{self.code}: {self.message}"]
        if self.found:
            parts.append(f"found: {self.found}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)


class UsageError(MoegeoError):
    """Options that contradict each other, or an unknown entry of a settings file."""

    code = "MG-E001"


class PathError(MoegeoError):
    """A path that does not exist or cannot be read."""

    code = "MG-E010"


class NoCheckpointError(MoegeoError):
    """A folder that holds no checkpoint."""

    code = "MG-E011"


class IncompleteCheckpointError(MoegeoError):
    """A checkpoint that is truncated, is still being written, or lacks a shard or a tensor."""

    code = "MG-E012"


class UnsupportedLayoutError(MoegeoError):
    """A layout that moegeo recognises but cannot read; the hint names the converting command."""

    code = "MG-E013"


class UnsafeFileError(MoegeoError):
    """A file that would execute code when loaded."""

    code = "MG-E014"


class ShapeError(MoegeoError):
    """Tensors whose shapes contradict the config."""

    code = "MG-E015"


class DenseModelError(MoegeoError):
    """A model without routers."""

    code = "MG-E020"


class UnsupportedArchitectureError(MoegeoError):
    """A model type, scoring function or router that moegeo cannot measure correctly."""

    code = "MG-E021"


class ProbeError(MoegeoError):
    """A probe dataset that cannot be read, is empty, or does not fit the model."""

    code = "MG-E030"


class BaselineError(MoegeoError):
    """A baseline that is missing or has another architecture."""

    code = "MG-E031"


class ComparisonError(MoegeoError):
    """Two runs that were not measured in the same way."""

    code = "MG-E032"


class FormatError(MoegeoError):
    """A record, threshold or intervention file that is malformed or of a newer version."""

    code = "MG-E040"


class OutputError(MoegeoError):
    """A result that cannot be written."""

    code = "MG-E041"


class ResourceError(MoegeoError):
    """Not enough memory, or a device that does not exist."""

    code = "MG-E050"
