"""The classes and functions that `metadata` accepts in a `.metadata`, and what each becomes."""

from __future__ import annotations

from typing import Any, TypeGuard

from moegeo_cli.checkpoints.headers import MAX_DIMENSIONS
from moegeo_cli.checkpoints.pickles import ALL_DTYPES
from moegeo_cli.checkpoints.unpickling import Allowed, Name

_MODULE = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_OLD_MODULE = "torch.distributed._shard.sharded_tensor.metadata"  # of older versions of torch
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


def is_naturals(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether `value` is a short tuple of integers from 0 to 2**63; a bool does not count."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
    )


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """`torch.Size(tuple)` as the tuple itself."""
    if len(arguments) == 1 and is_naturals(arguments[0]):
        return arguments[0]
    raise ValueError


def _text(arguments: tuple[Any, ...]) -> None:
    """A memory layout or a path, made from texts alone. Its value is not needed: None."""
    if not all(isinstance(part, str) for part in arguments):
        raise ValueError


def _memory_format(arguments: tuple[Any, ...]) -> None:
    """A member of an enumeration by number (a memory format, for instance). Not needed: None."""
    if len(arguments) != 1 or type(arguments[0]) is not int:
        raise ValueError


def _member(arguments: tuple[Any, ...]) -> None:
    """A member of an enumeration by name (some Python versions pickle it so). Not needed: None."""
    # check the type first: hashing a deeply nested tuple would take forever
    if len(arguments) != 2 or not isinstance(arguments[0], Name) or arguments[0] not in _FORMATS:
        raise ValueError
    _text(arguments[1:])


_FORMATS = frozenset(
    {Name(_MODULE, "_MEM_FORMAT_ENCODING"), Name(_OLD_MODULE, "MEM_FORMAT_ENCODING")}
)
ALLOWED = Allowed(
    classes=frozenset(
        {
            *(
                Name(_MODULE, name)
                for name in (
                    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
                    "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
                )
            ),
            Name(_OLD_MODULE, "TensorProperties"),
            Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            # Megatron-core adds every rank's plan, which holds no further information
            *(Name(_PLANNER, name) for name in ("SavePlan", "WriteItem", "TensorWriteData",
                                                "BytesIOWriteData")),
            Name("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
            Name("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
        }
    ),
    constants={Name(*text.split(".")): code for text, code in ALL_DTYPES.items()},
    calls={
        Name("torch", "Size"): _size,
        Name("torch.serialization", "_get_layout"): _text,
        **dict.fromkeys((*_FORMATS, Name(_PLANNER, "WriteItemType")), _memory_format),
        # protocols up to 2 write Python 2's name of the module
        **{Name(m, "getattr"): _member for m in ("builtins", "__builtin__")},
        **{Name(m, name): _text for m in ("pathlib", "pathlib._local") for name in _PATHS},
    },
)  # fmt: skip
