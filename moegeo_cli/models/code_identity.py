"""Identify the code that builds a user's model, for the key of stored measurements.

A measurement is stored only if an equal key implies equal code. A function in a module's file is
identified by its name and a hash of the source files. A closure, a partial, a lambda, a function of
a notebook, or one that was changed after its import is not identified, because different code can
have the same name.
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

MAX_SOURCES = 5_000  # files of a package that are hashed; larger packages are not a model's code
# (name, id) of an imported module -> hash of its sources when it was first looked at.
_first_hash: dict[tuple[str, int], str] = {}


def name_of(factory: str | Callable[..., Any]) -> str:
    """`module:name` of a callable.

    For a partial, the name of the function that it wraps; for an object without a name, its type's.
    """
    if isinstance(factory, str):
        return factory
    if isinstance(factory, functools.partial):
        return name_of(factory.func)
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}:{named.__qualname__}"


def why_unidentified(factory: str | Callable[..., Any]) -> str | None:
    """Why the code of a factory cannot be identified; None if it can. Nothing is imported.

    Args:
        factory: the callable, or `package.module:name`.
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
        if _has_state(factory):
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
    known = _compile_all(file)
    for function in _functions_of(found, module):
        if known is None or function.__code__ not in known:
            return f"{name} is not as its file {file.name} has it: changed since it was imported"
    hashed = hash_sources(module)
    if hashed is not None and _first_hash.setdefault((module, id(loaded)), hashed) != hashed:
        return f"the sources beside {name} have changed since it was imported"
    return None


def hash_sources(module: str) -> str | None:
    """SHA-256 of the source files around a module, as hexadecimal text. Nothing is imported.

    Hashed are all files of the module's top-level package, or the files of its folder if it is in
    no package.

    Args:
        module: the module's name.

    Returns:
        The hash; None if the module has no source file.
    """
    file = source_file(module)
    if file is None:
        return None
    if "." in module or file.name == "__init__.py":
        top = file.parents[module.count(".") - (file.name != "__init__.py")]
        files = sorted(top.rglob("*.py"))[:MAX_SOURCES]
    else:
        top, files = file.parent, sorted(file.parent.glob("*.py"))[:MAX_SOURCES]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(top)}\0".encode("utf-8", "surrogateescape"))
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            continue  # a broken link is not code of the model
    return digest.hexdigest()


def source_file(module: str) -> Path | None:
    """The source file of a module; None if it has none, as in a notebook. Nothing is imported."""
    known = getattr(sys.modules.get(module), "__file__", None)
    if known is not None:
        return Path(known)
    try:
        spec = importlib.util.find_spec(module)
    except KeyboardInterrupt:
        raise
    except BaseException:  # code of the parent package failed; the import will report that
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _has_state(factory: Callable[..., Any]) -> bool:
    """Whether a callable has values beside its code: an instance, its method, or a closure."""
    if isinstance(factory, types.MethodType):
        return not isinstance(factory.__self__, type) or _has_state(factory.__func__)
    if isinstance(factory, types.FunctionType):
        return factory.__closure__ is not None
    return not isinstance(factory, type)


def _functions_of(found: Any, module: str) -> Iterator[types.FunctionType]:
    """The functions of a factory that `module` defines: the function, or a class's methods."""
    if isinstance(found, types.MethodType):
        yield from _functions_of(found.__func__, module)
    elif isinstance(found, types.FunctionType):
        if found.__module__ == module:  # else another module defines it
            yield found
    elif isinstance(found, type) and found.__module__ == module:
        for member in vars(found).values():
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType) and _is_written_in(function, module):
                yield function


def _is_written_in(function: types.FunctionType, module: str) -> bool:
    """Whether a method is written in the module's file, and not generated by a decorator."""
    file = function.__code__.co_filename
    return function.__module__ == module and file == getattr(sys.modules[module], "__file__", None)


def _compile_all(file: Path) -> set[types.CodeType] | None:
    """All code objects of a file as it is now; None if it does not compile."""
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
