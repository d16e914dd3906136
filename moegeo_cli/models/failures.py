"""Turn errors of transformers into errors of moegeo."""

from __future__ import annotations

from pathlib import Path

import torch

from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    ResourceError,
    ShapeError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)


def explain(path: Path, error: Exception) -> MoegeoError:
    """The error of moegeo for an error that transformers raised while loading.

    Args:
        path: the checkpoint.
        error: the error of transformers.
    """
    text = str(error).strip()
    # After a first line that ends with a colon, the next lines hold the cause.
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:3]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, KeyError):
        first = f"transformers does not know {first}"
    low = text.lower()
    if "weights_only" in low or "unpickl" in low or "unsafe" in low:
        return UnsafeFileError(
            f"{path.name}: a pickled file holds more than weights and was not loaded",
            found=first,
            hint="convert the checkpoint to safetensors where it was trained",
        )
    if "size mismatch" in low or "ignore_mismatched_sizes" in low or "shape" in low:
        return ShapeError(f"{path.name}: shapes contradict the config", found=first)
    if "trust_remote_code" in low or "does not recognize" in low or "unrecognized" in low:
        return UnsupportedArchitectureError(
            f"{path.name}: transformers cannot open this model type", found=first
        )
    if "`conversion` entries" in low:  # the message refers to a report that is not printed
        return IncompleteCheckpointError(
            f"{path.name}: its tensors cannot be combined into the model's parameters",
            found="shapes or numbers of experts or matrices contradict each other",
            hint="save the checkpoint again with model.save_pretrained",
        )
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ResourceError(f"{path.name}: not enough memory to load", found=first)
    if "validation error" in low or isinstance(error, KeyError | TypeError | ValueError):
        return ShapeError(
            f"{path.name}: no model can be built from its config.json", found=first[:300],
            hint="compare config.json with that of the run's other checkpoints",
        )  # fmt: skip
    return IncompleteCheckpointError(f"{path.name}: the model cannot be loaded", found=first)
