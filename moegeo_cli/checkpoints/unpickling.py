"""Read a pickle without running it: build plain values and records only.

`metadata` reads `.metadata` with it. A pickle is a program for a small stack machine. This reader
executes the instructions that describe data, and accepts a list of class and function names.
Accepted names are never imported. Each stands for a `Record`, a constant, or a function of moegeo
that checks its arguments. Any other name or instruction is refused, and the error names it.

Source: the instructions are documented in Python's `pickletools`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegeo_cli.errors import IncompleteCheckpointError, UnsafeFileError

# A piece of a tensor takes about a hundred instructions: enough for a thousand tensors over 600
# ranks. The largest values that so many instructions can build stay under 5 GB.
MAX_INSTRUCTIONS = 60_000_000
# Values on the stack. Real pickles keep some thousand: they add to containers in batches.
MAX_WAITING = 100_000


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function that a pickle mentions."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An instance in a pickle: the bare name of its class, and its state (attributes)."""

    kind: str
    state: Any = None
    built: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """The names that a pickle may mention.

    Attributes:
        classes: their instances become records.
        constants: name -> value.
        calls: name -> function called with the pickle's arguments. It raises ValueError for
            unexpected ones.
    """

    classes: frozenset[Name]
    constants: Mapping[Name, Any] = field(default_factory=dict)
    calls: Mapping[Name, Callable[[tuple[Any, ...]], Any]] = field(default_factory=dict)


def unpickle(raw: bytes, path: Path, allowed: Allowed) -> Any:
    """Build the value that a pickle describes.

    Args:
        raw: the pickle.
        path: its file, for errors.
        allowed: the names that it may mention.

    Returns:
        A value made of None, bool, int, str, containers and records.

    Raises:
        UnsafeFileError: the pickle mentions another name, or calls something.
        IncompleteCheckpointError: it is truncated, damaged, or too long.
    """
    machine = _Machine(raw, path, allowed)
    try:
        return machine.run()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise machine.damaged(f"{type(error).__name__} at byte {machine.at}") from None


class _Machine:
    """The stack machine: `stack` holds values, `marks` are heights of the stack."""

    def __init__(self, raw: bytes, path: Path, allowed: Allowed) -> None:
        self.raw, self.path, self.allowed, self.at = raw, path, allowed, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute all instructions up to STOP, and return the value."""
        raw, stack, table = self.raw, self.stack, _INSTRUCTIONS
        for _ in range(MAX_INSTRUCTIONS):
            if self.at >= len(raw):
                raise self.damaged(f"it ends after {len(raw)} bytes without an end mark")
            code = raw[self.at]
            self.at += 1
            if code == _STOP:
                value = stack.pop()
                if stack or self.marks or self.at != len(raw):
                    raise self.damaged(f"further data after its end at byte {self.at}")
                return value
            instruction = table.get(code)
            if instruction is None:
                raise self.refuse(f"instruction {bytes([code])!r} at byte {self.at - 1}")
            instruction(self)
            if len(stack) > MAX_WAITING:
                raise self.damaged(f"over {MAX_WAITING:,} values on the stack")
        raise self.damaged(f"over {MAX_INSTRUCTIONS:,} instructions, more than moegeo reads")

    def damaged(self, found: str) -> IncompleteCheckpointError:
        return IncompleteCheckpointError(
            f"{self.path.name} is truncated or damaged",
            found=found,
            hint="copy or save the checkpoint again; if it is still being written, wait",
            context={"path": str(self.path)},
        )

    def refuse(self, found: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"{self.path.name} holds more than a description of tensors, and is refused",
            found=found[:200],
            hint="get the checkpoint from a source that you trust",
            context={"path": str(self.path)},
        )

    def take(self, count: int) -> bytes:
        """The next `count` bytes of the pickle. A false length raises before allocating memory."""
        if count > len(self.raw) - self.at:
            raise self.damaged(
                f"a length of {count} bytes where {len(self.raw) - self.at} are left"
            )
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        end = self.raw.index(b"\n", self.at)
        text = self.take(end - self.at).decode()
        self.at += 1
        return text

    def since_mark(self) -> list[Any]:
        """Remove the last mark and return the values above it."""
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def mention(self, module: Any, name: Any) -> None:
        """Push what a name stands for: a constant, or the name itself. Other names are refused."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise self.refuse("a class whose name is not a string")
        asked = Name(module, name)
        if asked in self.allowed.constants:
            self.stack.append(self.allowed.constants[asked])
        elif asked in self.allowed.classes or asked in self.allowed.calls:
            self.stack.append(asked)
        else:
            raise self.refuse(str(asked))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        made = self.allowed.calls.get(function) if isinstance(function, Name) else None
        if made is None or not isinstance(arguments, tuple):
            raise self.refuse(f"a call of {_describe(function)}")
        try:
            self.stack.append(made(arguments))
        except ValueError:
            raise self.refuse(f"{function} called with unexpected arguments") from None

    def instance(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Name) or kind not in self.allowed.classes or arguments != ():
            raise self.refuse(f"an instance of {_describe(kind)} made in an unknown way")
        self.stack.append(Record(kind.name))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Record) or target.built:
            raise self.refuse(f"attributes set on {_describe(target)}")
        target.state, target.built = state, True

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise self.refuse(f"items set on {_describe(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # hashing a deeply nested tuple as a key could take forever
            if not isinstance(key, str | Record):
                raise self.damaged(f"a key that is {_describe(key)}")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise self.refuse(f"items added to {_describe(target)}")
        target += items

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def protocol(self) -> None:
        if self.number(1) > 5:
            raise self.damaged("a pickle of a protocol that is not known")

    def frame(self) -> None:
        if self.number(8) > len(self.raw) - self.at:
            raise self.damaged(f"a frame longer than the {len(self.raw) - self.at} bytes left")

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise self.damaged("a tuple of more values than are on the stack")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def text(self, width: int) -> None:
        self.stack.append(self.take(self.number(width)).decode())


def _describe(value: Any) -> str:
    """A value in a few words. Its content is not looked at, since it may be nested very deep."""
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__.lower()}"


_STOP = ord(".")
_INSTRUCTIONS: Mapping[int, Callable[[_Machine], None]] = {
    ord(key): value
    for key, value in {
        "\x80": _Machine.protocol,
        "\x95": _Machine.frame,
        "(": lambda m: m.marks.append(len(m.stack)),
        "N": lambda m: m.stack.append(None),
        "\x88": lambda m: m.stack.append(True),
        "\x89": lambda m: m.stack.append(False),
        "K": lambda m: m.stack.append(m.number(1)),
        "M": lambda m: m.stack.append(m.number(2)),
        "J": lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
        "\x8a": lambda m: m.stack.append(
            int.from_bytes(m.take(m.number(1)), "little", signed=True)
        ),
        "\x8c": lambda m: m.text(1),
        "X": lambda m: m.text(4),
        "\x8d": lambda m: m.text(8),
        "}": lambda m: m.stack.append({}),
        "]": lambda m: m.stack.append([]),
        ")": lambda m: m.stack.append(()),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "t": lambda m: m.stack.append(tuple(m.since_mark())),
        "s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        "u": lambda m: m.set_items(m.since_mark()),
        "a": lambda m: m.append([m.stack.pop()]),
        "e": lambda m: m.append(m.since_mark()),
        "\x94": lambda m: m.remember(len(m.memo)),
        "q": lambda m: m.remember(m.number(1)),
        "r": lambda m: m.remember(m.number(4)),
        "h": lambda m: m.stack.append(m.memo[m.number(1)]),
        "j": lambda m: m.stack.append(m.memo[m.number(4)]),
        "c": lambda m: m.mention(m.line(), m.line()),
        "\x93": lambda m: m.mention(m.stack.pop(-2), m.stack.pop()),
        "R": _Machine.call,
        "\x81": _Machine.instance,
        "b": _Machine.build,
    }.items()
}
