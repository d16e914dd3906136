"""Streams: the payload alone on stdout; progress and the summary on stderr."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moegeo_cli.cli.interrupts import raise_pending
from moegeo_cli.errors import OutputError, UsageError
from moegeo_cli.keywords import words_of
from moegeo_cli.registry import Format, formats
from moegeo_cli.reports.escaping import clean
from moegeo_cli.store.files import check_writable, write_atomic

if TYPE_CHECKING:
    from rich.console import Console

    from moegeo_cli.measuring.run import Listener

# Files that a checkpoint or its tokenizer consists of. A report may lie beside them.
_CHECKPOINT_FILE = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|distcp|gguf|model|tiktoken|py|jinja|index\.json)"
    r"|(.*_)?config\.json|(tokenizer|vocab|added_tokens|special_tokens_map|chat_template).*\.json"
    r"|(trainer|training|scheduler)_state\.json|merges\.txt|vocab\.txt|readme\.md|latest"
)


def stdout_console() -> Console:
    """The console of the report."""
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            """Rich would exit 1, which is the gate's code."""
            raise BrokenPipeError

    return Patient(highlight=False)


def settle_format(shown: dict[str, Any], group: Any) -> None:
    """Choose the format: the one asked for, else by the suffix of the file, else rich.

    Args:
        shown: the options of the output, of which `format` is filled in.
        group: their declaration.

    Raises:
        UsageError: the suffix says a format that this command does not write.
    """
    if shown["format"] is not None:
        _check_binary(formats().get(shown["format"]), shown["output"])
        return
    output = shown["output"]
    suffix = "" if output is None else output.suffix.lower()
    said = next((name for name, found in formats().items() if suffix in found.suffixes), "rich")
    words = words_of(group, "format")
    if said not in words:
        raise UsageError(
            f"this command cannot write {said}",
            found=f"--output {output.name}",
            hint=f"--format is one of {', '.join(words)}",
        )
    shown["format"] = said
    _check_binary(formats().get(said), output)


def _check_binary(found: Format | None, output: Path | None) -> None:
    """See before the work that a format of bytes can be written.

    Raises:
        UsageError: no file is named, or its package is missing.
    """
    if found is None or not found.needs:
        return
    if output is None:
        raise UsageError(
            f"{found.name} is no text: it needs a file",
            found=f"--format {found.name} without --output",
            hint=f"-o report.{found.name}",
        )
    if importlib.util.find_spec(found.needs) is None:
        raise UsageError(
            f"--format {found.name} needs {found.needs}",
            found="not installed",
            hint=f"pip install 'moegeo[{found.name}]'",
        )


def write_payload(text: str | bytes, output: Path | None) -> None:
    """Put the payload where it was asked for: a file, whole or not at all, or stdout."""
    if output is not None:
        write_output(output, text)
        return
    data = text if isinstance(text, bytes) else (text.rstrip("\n") + "\n").encode()
    try:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:  # a stream of text alone, as tests have
            sys.stdout.write(data.decode())
        else:
            binary.write(data)  # UTF-8 whatever the terminal's locale: formats say so
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError("stdout cannot be written", found=str(error)) from error


def write_report(record: Any, shown: Mapping[str, Any], path: str | None = None) -> bool:
    """Write a record's report in the format asked for: onto the terminal, or as a payload.

    Args:
        record: what a command found.
        shown: the options of the output: `format`, `output` and `full`.
        path: where the run lies, for the commands at the end of a report.

    Returns:
        Whether a person saw it on a terminal.
    """
    from moegeo_cli.reports import print_record, render, render_screen

    if shown["format"] == "rich" and shown["output"] is None:
        print_record(record, stdout_console(), path, full=shown["full"])
        return True
    screen = shown["format"] == "rich" and not shown["full"]
    text = render_screen(record) if screen else render(record, shown["format"])
    write_payload(text, shown["output"])
    return False


def write_document(name: str, found: Mapping[str, Any], shown: Mapping[str, Any]) -> bool:
    """Write facts as JSON under the name of their format, where that was asked for.

    Returns:
        Whether it was; else they are to be printed as a table.
    """
    if shown["format"] != "json" and shown["output"] is None:
        return False
    document = {"format": {"name": name, "version": 1}, **found}
    write_payload(json.dumps(document, indent=2, allow_nan=False), shown["output"])
    return True


def write_output(path: Path, text: str | bytes) -> None:
    """Write a result to a file, whole or not at all; devices and pipes are written to.

    Raises:
        OutputError: not writable, or a file of a checkpoint.
    """
    try:
        path = path.resolve()
        special = path.exists() and not path.is_file() and not path.is_dir()
        if special:
            with path.open("wb") as stream:
                stream.write(text.encode() if isinstance(text, str) else text)
            return
        _spare_checkpoints(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written", found=str(error)) from error
    write_atomic(path, text)


def _spare_checkpoints(path: Path) -> None:
    """See that a file to be written is no existing file of a checkpoint, as its name tells.

    Raises:
        OutputError: it is one.
    """
    if not path.is_file() or not _CHECKPOINT_FILE.fullmatch(path.name.lower()):
        return
    if path.suffix == ".safetensors" or (path.parent / "config.json").is_file():
        raise OutputError(
            f"{path.name} is a file of a checkpoint and is not overwritten",
            hint="choose another --output",
        )


def check_output(path: Path | None) -> None:
    """See before hours of work that its result can be written.

    Raises:
        OutputError: it cannot.
    """
    if path is None:
        return
    target = path.resolve()
    if target.is_file():
        _spare_checkpoints(target)
    check_writable(path)


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


class LineProgress:
    """One line a checkpoint, for logs and CI."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """A run starts."""
        self.done, self.total = 0, count
        say(f"{clean(title)}: {count} {noun}{'s' if count != 1 else ''}")

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """A checkpoint starts."""
        raise_pending()
        self.done += 1
        say(f"  [{self.done}/{self.total}] {clean(name)}: {note}")

    def advance(self, tokens: int) -> None:
        """Tokens were replayed: not worth a line."""
        raise_pending()

    def note(self, text: str) -> None:
        """Something worth a line."""
        say(f"  {text}")


class BarProgress:
    """A bar on a terminal."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.run: Any = None
        self.current: Any = None

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """A run starts."""
        self.run = self.bar.add_task(clean(title), total=count)

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """A checkpoint starts; the one before it is done."""
        raise_pending()
        if self.current is not None:
            self.bar.remove_task(self.current)
            self.current = None
        self.bar.advance(self.run)
        if tokens:
            self.current = self.bar.add_task(f"  {clean(name)}: {note}", total=tokens)

    def advance(self, tokens: int) -> None:
        """Tokens were replayed."""
        raise_pending()
        if self.current is not None:
            self.bar.advance(self.current, tokens)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.bar.console.print(text, markup=False, highlight=False)


@contextmanager
def show_progress() -> Iterator[Listener]:
    """A bar on a terminal, lines elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield LineProgress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        # A run's name is text, whatever brackets it has.
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield BarProgress(bar)
