"""Named model inputs in a safetensors file.

Legend: S sequences, N tokens of a sequence with padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.rows import Row, printable

NAMES = ("input_ids", "attention_mask", "labels")
INPUTS = "input_ids, and optionally attention_mask and labels, each (sequences, tokens)"


def read_tensors(path: Path) -> Iterator[Row]:
    """The rows of a table of input_ids without their padding.

    Raises:
        ProbeError: damaged, other inputs than those of a language model, or shapes that
            contradict each other.
    """
    from safetensors import SafetensorError, safe_open

    name = printable(path.name)
    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            _refuse_others(names, name)
            tensors = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbeError(
            f"{name} cannot be read as safetensors of integers", found=str(error)[:200]
        ) from error
    ids_SN = tensors["input_ids"]
    for key, array in tensors.items():
        kinds = "iub" if key == "attention_mask" else "iu"
        if array.ndim != 2 or array.shape != ids_SN.shape or array.dtype.kind not in kinds:
            raise ProbeError(
                f"{key} in {name} is not a table of integers like input_ids",
                found=f"{array.dtype} {array.shape}; input_ids are {ids_SN.shape}",
                hint=INPUTS,
            )
    labels_SN = tensors.get("labels")
    mask_SN = tensors.get("attention_mask", np.ones(ids_SN.shape, dtype=bool))
    for place, mask_N in enumerate(mask_SN):
        kept = np.flatnonzero(mask_N)
        if not len(kept):
            continue
        if kept[-1] - kept[0] + 1 != len(kept) or (mask_N[kept] != 1).any():
            raise ProbeError(
                f"attention_mask in {name} is more than padding",
                found=f"row {place + 1} has gaps, or values besides 0 and 1",
                hint="one sequence a row; packed sequences are not supported",
            )
        labels_N = None if labels_SN is None else labels_SN[place][kept].astype(np.int64)
        yield Row(place + 1, input_ids=ids_SN[place][kept].astype(np.int64), labels=labels_N)


def _refuse_others(names: list[str], file: str) -> None:
    others = [printable(n) for n in names if n not in NAMES]
    if "input_ids" in names and not others:
        return
    raise ProbeError(
        f"{file} holds inputs that are not yet supported" if others else f"{file} has no input_ids",
        found=", ".join(others or names)[:200] or "no tensor",
        hint=f"moegeo measures language models so far: {INPUTS}",
    )
