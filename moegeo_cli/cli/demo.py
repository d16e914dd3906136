"""`moegeo demo`: analyze a sample run that is part of the package."""

from __future__ import annotations

from typing import Any

from moegeo_cli.cli.analyze import emit
from moegeo_cli.cli.console import check_output, choose_format, say, show_progress
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import RunOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("demo").groups)
def demo(options: dict[str, Any], output_options: dict[str, Any]) -> None:
    """Analyze a small trained run that comes with moegeo. It takes seconds.

    It writes files only for -o, --log and --cache-dir (which stores the measurements).

    [bold]moegeo demo[/bold]
    [bold]moegeo demo -o demo.html[/bold]
    """
    from moegeo_cli.commands.demo.api import demo as measure
    from moegeo_cli.commands.demo.api import demo_run
    from moegeo_cli.sinks import open_places

    choose_format(output_options, RunOutput)
    check_output(output_options["output"])
    output_options["log"] = open_places(output_options["log"])
    run = demo_run()
    say("A Mixtral of 3 layers and 8 experts, trained on text with a common mistake.")
    say(f"Its files: {run}")
    with show_progress() as progress:
        record = measure(progress=progress, **options)
    emit(record, run, **output_options)
    say("For your own run: moegeo analyze RUN_FOLDER")
