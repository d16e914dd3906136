"""Provenance of a measurement: the versions and the device that it was made with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from moegeo_cli import __version__
from moegeo_cli.records import CheckpointRecord

# Numerical details differ between versions of these packages, so results name the versions.
PACKAGES = ("torch", "transformers", "numpy", "scipy", "safetensors")
# These packages compute the replay: with another version a checkpoint is measured again.
DECIDING = ("torch", "transformers")
# Device files of accelerators in /dev on Linux.
ACCELERATORS = ("nvidia*", "kfd", "dri/render*", "accel*", "davinci*", "dxg")


@cache
def package_version(name: str) -> str:
    """The installed version of a package; cached, because reading it parses a long file."""
    return metadata.version(name)


def running_versions() -> dict[str, str]:
    """The installed versions by package, without importing them."""
    return {"moegeo": __version__, **{name: package_version(name) for name in PACKAGES}}


def deciding_versions() -> dict[str, str]:
    """The versions that are part of a measurement's key in the store."""
    return {name: package_version(name) for name in DECIDING}


def deciding_device(name: str) -> str:
    """The kind of device for the store's key; "auto" is resolved, as it depends on the machine.

    torch is imported only if the machine may have an accelerator.
    """
    if name != "auto" or not may_have_accelerator():
        return name if name != "auto" else "cpu"
    from moegeo_cli.models.loading import resolve_device

    return str(resolve_device(name).type)


def may_have_accelerator() -> bool:
    """Whether torch may find an accelerator, judged by its build and the device files."""
    if package_version("torch").endswith("+cpu"):
        return False
    if sys.platform != "linux":
        return True
    return any(any(Path("/dev").glob(pattern)) for pattern in ACCELERATORS)


def measured_versions(
    checkpoints: Sequence[CheckpointRecord],
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The versions that measured the newest checkpoint, and notes about differing versions.

    Args:
        checkpoints: the checkpoints of a run, oldest first.
    """
    of_each = [c.replay.get("versions") or {} for c in checkpoints]
    newest = of_each[-1] or running_versions()
    running, notes = running_versions(), []
    other = sorted(n for n, version in newest.items() if running.get(n) != version)
    if other:
        words = ", ".join(f"{n} {newest[n]} (now {running.get(n)})" for n in other)
        notes.append(f"measured earlier with other versions: {words}")
    mixed = sorted({n for own in of_each for n, v in own.items() if newest.get(n) != v})
    if mixed:
        notes.append(f"checkpoints were measured with different versions of {', '.join(mixed)}")
    return dict(newest), tuple(notes)
