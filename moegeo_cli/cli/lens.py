"""Builds the command line of a lens from its declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import (
    check_output,
    choose_format,
    show_progress,
    write_payload,
    write_report,
)
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import LensOutput
from moegeo_cli.registry import Argument, Command


def lens_command(command: Command) -> Callable[..., Any]:
    """The Typer command of a lens. It takes the lens's paths and options, and `LensOutput`."""

    def run(
        *, options: dict[str, Any], output_options: dict[str, Any], **paths: Path | None
    ) -> None:
        _check_places(output_options)
        measure = command.function
        with show_progress() as progress:
            record = measure(*paths.values(), progress=progress, **options)
        _emit(record, output_options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [_parameter(argument) for argument in command.arguments]
    groups = [inspect.Parameter(name, keyword) for name in ("options", "output_options")]
    run.__signature__ = inspect.Signature([*own, *groups])  # type: ignore[attr-defined]
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


def _check_places(output_options: dict[str, Any]) -> None:
    """Check, before measuring, that the output files can be written.

    Raises:
        UsageError: a file name or format that does not fit.
        OutputError: a file that cannot be written.
    """
    from moegeo_cli.reports.matrices import check_name

    choose_format(output_options, LensOutput)
    if output_options["matrices"] is not None:
        check_name(output_options["matrices"])
    check_output(output_options["matrices"])
    check_output(output_options["output"])


def _emit(record: Any, output_options: dict[str, Any]) -> None:
    """Write the report of a lens in the chosen format, and its matrices."""
    from moegeo_cli.reports.matrices import matrices_file

    if output_options["matrices"] is not None:
        write_payload(matrices_file(record, output_options["matrices"]), output_options["matrices"])
    write_report(record, output_options)
