"""Names without what wrappers of training put into them, wherever it stands."""

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
    """Names of the model -> names in the files, and the wrappers that were taken off."""

    names: dict[str, str]
    wrappers: tuple[str, ...]


def unwrap_name(name: str, *, inner: bool = True) -> str:
    """A name without wrappers.

    Args:
        name: as saved.
        inner: take `module.` off within names as well; a user's own model may have such a part.
    """
    return _strip(name, inner)[0]


def unwrap_names(names: Iterable[str], *, inner: bool = True) -> Unwrapped:
    """The same for all names of a checkpoint; two that would become one stay as they are."""
    found: dict[str, list[str]] = {}
    wrappers: set[str] = set()
    taken: dict[str, tuple[str, ...]] = {}
    for name in names:
        plain, off = _strip(name, inner)
        found.setdefault(plain, []).append(name)
        taken[name] = off
    result = {}
    for plain, saved in found.items():
        if len(saved) == 1:
            result[plain] = saved[0]
            wrappers.update(taken[saved[0]])
        else:
            result |= {name: name for name in saved}
    return Unwrapped(result, tuple(sorted(wrappers)))


def _strip(name: str, inner: bool) -> tuple[str, tuple[str, ...]]:
    taken: list[str] = []
    while True:
        before = name
        for pattern in (_EVERYWHERE, _MODULE, _PEFT):
            match = pattern.search(name) if pattern is not _MODULE or inner else pattern.match(name)
            if match is not None:
                name = name[: match.start()] + name[match.end() :]
                taken.append(match[0])
        if name == before:
            return name, tuple(taken)
