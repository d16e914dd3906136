"""The command line of a lens, made from its declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import (
    check_output,
    settle_format,
    show_progress,
    write_payload,
    write_report,
)
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import LensOutput
from moegeo_cli.registry import Argument, Command


def lens_command(command: Command) -> Callable[..., Any]:
    """A command of Typer's for a lens.

    It takes the lens's paths and options, and `LensOutput` is its output.
    """

    def run(*, options: dict[str, Any], shown: dict[str, Any], **paths: Path | None) -> None:
        _check_places(shown)
        measure = command.function
        with show_progress() as progress:
            record = measure(*paths.values(), progress=progress, **options)
        _emit(record, shown)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [_parameter(argument) for argument in command.arguments]
    held = [inspect.Parameter(name, keyword) for name in ("options", "shown")]
    run.__signature__ = inspect.Signature([*own, *held])  # type: ignore[attr-defined]
    run.__name__ = command.name
    run.__doc__ = command.help
    return with_options(*command.groups)(run)


def _parameter(argument: Argument) -> inspect.Parameter:
    kind: Any = Path | None if argument.optional else Path
    return inspect.Parameter(
        argument.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if argument.optional else inspect.Parameter.empty,
        annotation=Annotated[kind, typer.Argument(help=argument.help)],
    )


def _check_places(shown: dict[str, Any]) -> None:
    """Refuse files that cannot be written, before hours of work.

    Raises:
        UsageError: one of them.
    """
    from moegeo_cli.reports.matrices import check_name

    settle_format(shown, LensOutput)
    if shown["matrices"] is not None:
        check_name(shown["matrices"])
    check_output(shown["matrices"])
    check_output(shown["output"])


def _emit(record: Any, shown: dict[str, Any]) -> None:
    """The report of a lens, in the format asked for, and its matrices."""
    from moegeo_cli.reports.matrices import matrices_file

    if shown["matrices"] is not None:
        write_payload(matrices_file(record, shown["matrices"]), shown["matrices"])
    write_report(record, shown)
