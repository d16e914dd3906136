"""Load pickled weight files of torch (.bin, .pt) without running code from the pickle.

`WeightIndex` uses it. torch is imported only when a file is loaded; `check_pickled` checks a file
without torch.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.safe_files import open_regular
from moegeo_cli.errors import IncompleteCheckpointError, PathError, UnsafeFileError

# Parts of torch's error messages that name a class or function outside its allow-list.
_REFUSED = re.compile(r"GLOBAL \S+|Trying to \w+ \S+|Unsupported (?:global|class)[^\n]*")
# Keys under which training scripts keep the state dict; the first match counts.
STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
TORCH_DTYPES: Mapping[str, str] = {
    "torch.float32": "F32", "torch.float64": "F64", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.int64": "I64", "torch.int32": "I32",
    "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8", "torch.bool": "BOOL",
}  # fmt: skip
# The same, and dtypes that are recognised but not read as numbers.
ALL_DTYPES: Mapping[str, str] = {
    **TORCH_DTYPES, "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0", "torch.uint16": "U16", "torch.uint32": "U32",
    "torch.uint64": "U64", "torch.complex64": "C64",
}  # fmt: skip


def check_pickled(path: Path) -> None:
    """Check without torch that a pickled file is complete: a zip archive ends with its directory.

    Files of torch's older format have no such mark; a truncated one fails when torch loads it.

    Raises:
        IncompleteCheckpointError: the file is empty or a truncated archive.
    """
    with open_regular(path) as (file, size):
        start = file.read(4)
        whole = start != b"PK\x03\x04" or zipfile.is_zipfile(file)
    if size == 0 or not whole:
        raise IncompleteCheckpointError(
            f"{path.name} is truncated",
            found=f"{size} bytes without the archive's directory at their end",
            hint="copy or save the checkpoint again; if it is still being written, wait",
            context={"path": str(path)},
        )


def load_pickled(path: Path) -> dict[str, Any]:
    """Load a pickled state dict memory-mapped; only tensors are built from the pickle.

    Returns:
        Name -> torch tensor.

    Raises:
        UnsafeFileError: the pickle would run code.
        IncompleteCheckpointError: the file is truncated, or not a state dict.
    """
    import torch

    check_pickled(path)
    with open_regular(path) as (file, _):
        is_zip = file.read(4) == b"PK\x03\x04"
    loaded = load_weights_only(path, path, mmap=is_zip)
    for state in (*_nested(loaded), loaded):
        tensors = {
            name: value
            for name, value in state.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        } if isinstance(state, dict) else {}  # fmt: skip
        if tensors:
            return tensors
    raise _broken_pickle(path, f"a {type(loaded).__name__} without named tensors")


def load_weights_only(source: Path | IO[bytes], path: Path, *, mmap: bool) -> Any:
    """`torch.load` with weights_only, and with moegeo's errors.

    Args:
        source: the file, or an open file.
        path: its path, for errors.
        mmap: whether to memory-map the file.

    Raises:
        UnsafeFileError: the pickle would run code.
        IncompleteCheckpointError: the file is truncated, or not a pickle of tensors.
        PathError: the file is unreadable.
    """
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is not None:
            raise UnsafeFileError(
                f"{path.name} asks for code to run while it loads, and is refused",
                found=refused.group(0)[:200],
                hint="get the checkpoint as safetensors from a source that you trust",
                context={"path": str(path)},
            ) from None
        # torch's message goes on to advise loading without weights_only: do not repeat it
        if isinstance(source, Path) and not mmap:
            raise IncompleteCheckpointError(
                f"{path.name} is not a file that torch.save wrote, or it is damaged",
                found="neither a zip archive nor torch's older format",
                hint="save the model with save_pretrained, or torch.save(model.state_dict(), FILE)",
                context={"path": str(path)},
            ) from None
        raise _broken_pickle(path, "a pickle that torch cannot read as weights") from None
    except OSError as error:
        raise PathError(f"{path} cannot be read", found=str(error)[:200]) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise _broken_pickle(path, f"{type(error).__name__}: {error}") from None


def _nested(loaded: Any) -> list[Any]:
    """Values that may be the model's state dict within what a training script saved, in order."""
    holders = [loaded]
    if isinstance(loaded, dict):
        holders.append(loaded.get("state"))  # Composer: "state", then "model"
    return [h[key] for h in holders if isinstance(h, dict) for key in STATE_KEYS if key in h]


def describe_tensor(tensor: Any) -> TensorInfo:
    """The TensorInfo of a torch tensor; its place is (0, size in bytes)."""
    dtype = ALL_DTYPES.get(str(tensor.dtype), str(tensor.dtype))
    return TensorInfo(dtype, tuple(tensor.shape), 0, tensor.numel() * tensor.element_size())


def tensor_bytes(tensor: Any) -> bytes:
    """The bytes of a torch tensor of any dtype, in the order of its elements."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: bytes = flat.view(torch.uint8).numpy().tobytes()
    return raw


def _broken_pickle(path: Path, found: str) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"{path.name} is truncated or not a state dict",
        found=found[:300],
        hint="copy or save the checkpoint again",
        context={"path": str(path)},
    )
