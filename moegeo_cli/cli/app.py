"""The Typer application, and the one place where errors become text and exit codes.

Exit codes: 0 done; 1 the verdict is at `--fail-on` or worse; 2 usage or input error; 3 `--fail-on`
was given and the verdict is inconclusive; 70 a bug in moegeo; 130 interrupted; 141 stdout was
closed.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, Exit, TyperException
from typer.main import get_command

from moegeo_cli import __version__
from moegeo_cli.cli.interrupts import raise_pending, remembered_interrupts
from moegeo_cli.cli.lens import lens_command
from moegeo_cli.cli.probe import probe_app
from moegeo_cli.cli.ranks import FOREIGN_OPTIONS, refuse_parallelism, run_among_ranks
from moegeo_cli.cli.settings import load_defaults, settings_in_force, settings_source
from moegeo_cli.errors import MoegeoError
from moegeo_cli.registry import commands, load
from moegeo_cli.reports.escaping import clean

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 2, 70, 130, 141

app = typer.Typer(
    name="moegeo",
    help="Analyze the checkpoints of a Mixture-of-Experts run.\n\nmoegeo runs each checkpoint on a "
    "probe dataset and answers: do the experts specialise, does routing collapse, will the run "
    "fail, and what should be changed?",
    epilog="Start with: moegeo analyze RUN_FOLDER",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in commands().values():
    own = f"moegeo_cli.cli.{command.name}:{command.name}"
    app.command(command.name)(lens_command(command) if command.lens else load(own))
app.add_typer(probe_app, name="probe", help="Make and describe a probe dataset.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moegeo {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Read the settings file before a command's options are filled in."""
    context.default_map = load_defaults(context.command)
    words = settings_in_force(context.invoked_subcommand or "", context.default_map)
    if words:
        print(clean(words), file=sys.stderr)


@cache
def command_line() -> Any:
    """All commands with their options, as click objects: formed once a process."""
    return get_command(app)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Exceptions become messages on stderr."""
    return run_among_ranks(partial(_run, arguments), _report)


def _run(arguments: list[str] | None, ranks: Ranks | None) -> int:
    try:
        with remembered_interrupts():
            result = command_line()(args=arguments, standalone_mode=False, obj=ranks)
            raise_pending()
        if result == EXIT_INTERRUPTED:  # Typer handled Ctrl-C itself and printed nothing
            raise KeyboardInterrupt
        sys.stdout.flush()  # here, so that the handler below sees a closed pipe
        return result if isinstance(result, int) else 0
    except MoegeoError as error:
        return _report(error)
    except Exit as leave:
        return int(leave.exit_code)
    except TyperException as error:
        kind = FOREIGN_OPTIONS.get(str(getattr(error, "option_name", "")))
        if kind is not None:
            return _report(refuse_parallelism(kind))
        if error.format_message():  # empty if no command was given: then the help was printed
            source = settings_source(error)
            hint = "moegeo COMMAND --help"
            if source is not None:
                hint = f"the value is set in {source}; a command's own table can override it"
            _say(f"error[MG-E001]: {error.format_message()}", hint=hint)
        return EXIT_USAGE
    except (KeyboardInterrupt, Abort):
        _say("interrupted; what was already measured is kept")
        return EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit):  # rich raises SystemExit within a help page
        # The reader of stdout has ended, as in `| head`. 141 is what a shell reports for that; 0
        # and 1 would be taken for answers to --fail-on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except Exception as error:
        _say(
            f"bug: {type(error).__name__}: {error}",
            hint="this is a bug in moegeo, not in your run; set MOEGEO_DEBUG=1 for the traceback",
        )
        if os.environ.get("MOEGEO_DEBUG"):
            traceback.print_exc(file=sys.stderr)
        return EXIT_BUG


def _report(error: MoegeoError) -> int:
    _say(f"error[{error.code}]: {error.message}", found=error.found, hint=error.hint)
    return error.exit_code


def _say(message: str, *, found: str | None = None, hint: str | None = None) -> None:
    """Print an error on stderr. Control characters in names from files are removed."""
    lines = [clean(message)]
    if found:
        lines.append(f"  found: {clean(found)}")
    if hint:
        lines.append(f"  hint: {clean(hint)}")
    print("\n".join(lines), file=sys.stderr)
