"""Remove from tensor names what training wrappers add (torch.compile, FSDP, DDP, PEFT, ...).

`effective` applies it to every checkpoint, so that names are those of the bare model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# torch.compile, FSDP, activation checkpointing, DeepSpeed and Lightning; then DDP; then PEFT.
_EVERYWHERE = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_MODULE = re.compile(r"(?:^|(?<=\.))module\.")
_PEFT = re.compile(r"(?:^|(?<=\.))base_model\.model\.")


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """Names without wrappers.

    Attributes:
        names: name in the model -> name in the files.
        wrappers: the prefixes that were removed, sorted.
    """

    names: dict[str, str]
    wrappers: tuple[str, ...]


def unwrap_name(name: str, *, inner: bool = True) -> str:
    """A name without wrappers.

    Args:
        name: as saved.
        inner: remove `module.` also within the name, not only at its start. False for a user's
            own model, which may have a part of that name.
    """
    return _strip(name, inner)[0]


def unwrap_names(names: Iterable[str], *, inner: bool = True) -> Unwrapped:
    """Remove wrappers from all names of a checkpoint.

    Names that would become equal stay as they are.

    Args:
        names: as saved.
        inner: see `unwrap_name`.
    """
    found: dict[str, list[str]] = {}
    wrappers: set[str] = set()
    removed: dict[str, tuple[str, ...]] = {}
    for name in names:
        plain, removed[name] = _strip(name, inner)
        found.setdefault(plain, []).append(name)
    result = {}
    for plain, saved in found.items():
        if len(saved) == 1:
            result[plain] = saved[0]
            wrappers.update(removed[saved[0]])
        else:
            result |= {name: name for name in saved}
    return Unwrapped(result, tuple(sorted(wrappers)))


def _strip(name: str, inner: bool) -> tuple[str, tuple[str, ...]]:
    """The name without wrappers, and the prefixes that were removed."""
    removed: list[str] = []
    while True:
        before = name
        for pattern in (_EVERYWHERE, _MODULE, _PEFT):
            match = pattern.search(name) if pattern is not _MODULE or inner else pattern.match(name)
            if match is not None:
                name = name[: match.start()] + name[match.end() :]
                removed.append(match[0])
        if name == before:
            return name, tuple(removed)
