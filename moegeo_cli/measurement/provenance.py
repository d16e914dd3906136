"""Which versions measured: kept with every measurement, and shown from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from moegeo_cli import __version__
from moegeo_cli.records import CheckpointRecord

# Rotation, gradient and kernel details differ between these: results name them.
PACKAGES = ("torch", "transformers", "numpy", "scipy", "safetensors")
# These compute the replay: a measurement of other versions is made anew.
DECIDING = ("torch", "transformers")


def running_versions() -> dict[str, str]:
    """Versions of this process, by package; reads no package."""
    return {"moegeo": __version__, **{name: metadata.version(name) for name in PACKAGES}}


def deciding_versions() -> dict[str, str]:
    """What belongs to the key that a measurement is stored under."""
    return {name: metadata.version(name) for name in DECIDING}


def measured_versions(
    checkpoints: Sequence[CheckpointRecord],
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The versions that measured the newest checkpoint, and what to say where others differ.

    Args:
        checkpoints: of a run, oldest first.
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
