"""Output streams: the report goes to stdout or a file; progress and summaries go to stderr."""

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
from moegeo_cli.keywords import choices_of
from moegeo_cli.registry import Format, formats
from moegeo_cli.reports.escaping import clean
from moegeo_cli.store.files import check_writable, write_atomic

if TYPE_CHECKING:
    from rich.console import Console

    from moegeo_cli.measuring.run import Listener

# Names of files that belong to a checkpoint or its tokenizer; a report never overwrites them.
_CHECKPOINT_FILE = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|distcp|gguf|model|tiktoken|py|jinja|index\.json)"
    r"|(.*_)?config\.json|(tokenizer|vocab|added_tokens|special_tokens_map|chat_template).*\.json"
    r"|(trainer|training|scheduler)_state\.json|merges\.txt|vocab\.txt|readme\.md|latest"
)


def stdout_console() -> Console:
    """The console for reports on stdout."""
    from rich.console import Console

    class RaisingConsole(Console):
        def on_broken_pipe(self) -> None:
            """Raise instead of exiting with 1, which is the exit code of --fail-on."""
            raise BrokenPipeError

    return RaisingConsole(highlight=False)


def choose_format(output_options: dict[str, Any], group: Any) -> None:
    """Fill in `format`: the one given, else by the suffix of `--output`, else rich.

    Args:
        output_options: the output options of the command; `format` is changed in place.
        group: the group that declares them.

    Raises:
        UsageError: the suffix names a format that this command does not write, or a binary format
            has no file or lacks its package.
    """
    if output_options["format"] is not None:
        _check_binary(formats().get(output_options["format"]), output_options["output"])
        return
    output = output_options["output"]
    suffix = "" if output is None else output.suffix.lower()
    chosen = next((name for name, found in formats().items() if suffix in found.suffixes), "rich")
    allowed = choices_of(group, "format")
    if chosen not in allowed:
        raise UsageError(
            f"this command cannot write {chosen}",
            found=f"--output {output.name}",
            hint=f"--format is one of {', '.join(allowed)}",
        )
    output_options["format"] = chosen
    _check_binary(formats().get(chosen), output)


def _check_binary(found: Format | None, output: Path | None) -> None:
    """Check, before measuring, that a binary format can be written.

    Raises:
        UsageError: no file was given, or the format's package is not installed.
    """
    if found is None or not found.needs:
        return
    if output is None:
        raise UsageError(
            f"{found.name} is a binary format and needs a file",
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
    """Write a report to its file (whole, or not at all) or to stdout.

    Raises:
        OutputError: it cannot be written.
    """
    if output is not None:
        write_output(output, text)
        return
    data = text if isinstance(text, bytes) else (text.rstrip("\n") + "\n").encode()
    try:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:  # a text-only stream, as in tests
            sys.stdout.write(data.decode())
        else:
            binary.write(data)  # always UTF-8, as the formats declare, whatever the locale
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError("stdout cannot be written", found=str(error)) from error


def write_report(record: Any, output_options: Mapping[str, Any], path: str | None = None) -> bool:
    """Write a record's report in the chosen format.

    Args:
        record: the result of a command.
        output_options: `format`, `output` and `full`.
        path: the run's path, for the commands at the end of a report.

    Returns:
        Whether it was printed on the console, with styles.
    """
    from moegeo_cli.reports import print_record, render, render_screen

    if output_options["format"] == "rich" and output_options["output"] is None:
        print_record(record, stdout_console(), path, full=output_options["full"])
        return True
    screen = output_options["format"] == "rich" and not output_options["full"]
    text = render_screen(record) if screen else render(record, output_options["format"])
    write_payload(text, output_options["output"])
    return False


def write_document(name: str, found: Mapping[str, Any], output_options: Mapping[str, Any]) -> bool:
    """Write facts as JSON if `--format json` or `--output` was given.

    Args:
        name: name of the JSON format.
        found: the facts.
        output_options: `format` and `output`.

    Returns:
        Whether they were written; if not, the caller prints them as a table.
    """
    if output_options["format"] != "json" and output_options["output"] is None:
        return False
    document = {"format": {"name": name, "version": 1}, **found}
    write_payload(json.dumps(document, indent=2, allow_nan=False), output_options["output"])
    return True


def write_output(path: Path, text: str | bytes) -> None:
    """Write a result to a file, whole or not at all. Devices and pipes are written directly.

    Raises:
        OutputError: the path is not writable, or is a file of a checkpoint.
    """
    try:
        path = path.resolve()
        special = path.exists() and not path.is_file() and not path.is_dir()
        if special:
            with path.open("wb") as stream:
                stream.write(text.encode() if isinstance(text, str) else text)
            return
        _refuse_checkpoint_file(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written", found=str(error)) from error
    write_atomic(path, text)


def _refuse_checkpoint_file(path: Path) -> None:
    """Refuse to overwrite a file of a checkpoint, recognised by its name.

    Raises:
        OutputError: the file exists and belongs to a checkpoint.
    """
    if not path.is_file() or not _CHECKPOINT_FILE.fullmatch(path.name.lower()):
        return
    if path.suffix == ".safetensors" or (path.parent / "config.json").is_file():
        raise OutputError(
            f"{path.name} is a file of a checkpoint and is not overwritten",
            hint="choose another --output",
        )


def check_output(path: Path | None) -> None:
    """Check, before measuring, that the result can be written.

    Raises:
        OutputError: it cannot.
    """
    if path is None:
        return
    target = path.resolve()
    if target.is_file():
        _refuse_checkpoint_file(target)
    check_writable(path)


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


class LineProgress:
    """Prints one line per checkpoint, for logs and CI."""

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
        """Tokens were replayed. Nothing is printed."""
        raise_pending()

    def note(self, text: str) -> None:
        """Print a note."""
        say(f"  {text}")


class BarProgress:
    """Shows a progress bar on a terminal."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.run: Any = None
        self.current: Any = None

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """A run starts."""
        self.run = self.bar.add_task(clean(title), total=count)

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """A checkpoint starts, so the previous one is done."""
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
        """Print a note."""
        self.bar.console.print(text, markup=False, highlight=False)


@contextmanager
def show_progress() -> Iterator[Listener]:
    """Report progress on stderr: a bar on a terminal, lines elsewhere."""
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
        # markup=False: a run's name may contain brackets.
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield BarProgress(bar)
