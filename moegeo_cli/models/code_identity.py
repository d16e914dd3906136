"""Identifies the code that builds a user's model, for the store's key.

A measurement may be kept only where the same key means the same code. A function of a module's
file is told by its name and by a hash of the sources. A closure, a partial, a lambda, a function
of a notebook, or one that was changed since its import is not: another one can have its name.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_SOURCES = 5_000  # files of a package that are hashed; beyond that it is no model's
_first_hash: dict[tuple[str, int], str] = {}  # of modules that are loaded, by name and identity


def name_of(factory: str | Callable[..., Any]) -> str:
    """Module and name of a callable; of what it wraps, or of its type, where it has none."""
    if isinstance(factory, str):
        return factory
    if isinstance(factory, functools.partial):
        return name_of(factory.func)
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}:{named.__qualname__}"


def why_unidentified(factory: str | Callable[..., Any]) -> str | None:
    """Why the code cannot be identified, in words; None if it can.

    Nothing is imported.
    """
    name = name_of(factory)
    module, _, place = name.partition(":")
    if not isinstance(factory, str):
        if isinstance(factory, functools.partial):
            return f"functools.partial of {name} holds arguments that moegeo cannot identify"
        if "<lambda>" in place:
            return f"{name} is a lambda"
        if "<locals>" in place:
            return f"{name} is defined within a function"
        if _state(factory):
            return f"{name} holds values that cannot be told"
    file = source_file(module)
    if file is None or not file.is_file():
        return f"the source of {name} is in no file"
    loaded = sys.modules.get(module)
    if loaded is None:
        return None
    found: Any = loaded
    for part in place.split("."):
        found = getattr(found, part, None)
    if not isinstance(factory, str) and found != factory:
        return f"{name} is not what its module has under this name"
    known = _codes(file)
    for function in _functions(found, module):
        if known is None or function.__code__ not in known:
            return f"{name} is not as its file {file.name} has it: changed since it was imported"
    hashed = hash_sources(module)
    if hashed is not None and _first_hash.setdefault((module, id(loaded)), hashed) != hashed:
        return f"the sources beside {name} have changed since it was imported"
    return None


def hash_sources(module: str) -> str | None:
    """A hash of the source files that a model is built by. They are not imported.

    The top-level package that the module lies in, whole; or all modules of its folder where it
    lies in none. None for a callable whose source is in no file.
    """
    file = source_file(module)
    if file is None:
        return None
    if "." in module or file.name == "__init__.py":
        top = file.parents[module.count(".") - (file.name != "__init__.py")]
        files = sorted(top.rglob("*.py"))[:MOST_SOURCES]
    else:
        top, files = file.parent, sorted(file.parent.glob("*.py"))[:MOST_SOURCES]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(top)}\0".encode("utf-8", "surrogateescape"))
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            continue  # a link that leads nowhere: not what the model is built by
    return digest.hexdigest()


def source_file(module: str) -> Path | None:
    """The file of a module; None where it has none, as in a notebook."""
    known = getattr(sys.modules.get(module), "__file__", None)
    if known is not None:
        return Path(known)
    try:
        spec = importlib.util.find_spec(module)
    except KeyboardInterrupt:
        raise
    except BaseException:  # of the package around it; the import itself will say what is wrong
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _state(factory: Callable[..., Any]) -> bool:
    """Whether a callable is more than its code: an instance, its method, or a closure."""
    if isinstance(factory, types.MethodType):
        return not isinstance(factory.__self__, type) or _state(factory.__func__)
    if isinstance(factory, types.FunctionType):
        return factory.__closure__ is not None
    return not isinstance(factory, type)


def _functions(found: Any, module: str) -> Iterator[types.FunctionType]:
    """The functions of a module that a factory consists of: itself, or a class's own."""
    if isinstance(found, types.MethodType):
        yield from _functions(found.__func__, module)
    elif isinstance(found, types.FunctionType):
        if found.__module__ == module:  # else it is imported there, or put there
            yield found
    elif isinstance(found, type) and found.__module__ == module:
        for member in vars(found).values():
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType) and _is_of(function, module):
                yield function


def _is_of(function: types.FunctionType, module: str) -> bool:
    """Whether a class's function is written in its module, and not made by a decorator."""
    file = function.__code__.co_filename
    return function.__module__ == module and file == getattr(sys.modules[module], "__file__", None)


def _codes(file: Path) -> set[types.CodeType] | None:
    """All code in a file as it is now; None where it does not compile."""
    try:
        found = {compile(file.read_bytes(), str(file), "exec", dont_inherit=True)}
    except (OSError, SyntaxError, ValueError):
        return None
    waiting = list(found)
    while waiting:
        inner = {c for c in waiting.pop().co_consts if isinstance(c, types.CodeType)}
        waiting += inner - found
        found |= inner
    return found
