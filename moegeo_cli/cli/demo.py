"""`moegeo demo`: the main job on a sample run that comes with the package."""

from __future__ import annotations

from typing import Any

from moegeo_cli.cli.analyze import emit
from moegeo_cli.cli.console import check_output, say, settle_format, show_progress
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import RunOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("demo").groups)
def demo(options: dict[str, Any], shown: dict[str, Any]) -> None:
    """Analyze a small trained run that comes with moegeo. It takes seconds.

    Nothing is written but what -o and --log ask for; --cache-dir keeps the measurements.

    [bold]moegeo demo[/bold]
    [bold]moegeo demo -o demo.html[/bold]
    """
    from moegeo_cli.commands.demo.api import demo as measure
    from moegeo_cli.commands.demo.api import demo_run
    from moegeo_cli.sinks import open_places

    settle_format(shown, RunOutput)
    check_output(shown["output"])
    shown["log"] = open_places(shown["log"])
    run = demo_run()
    say("A Mixtral of 3 layers and 8 experts, trained on text with a common mistake.")
    say(f"Its files: {run}")
    with show_progress() as progress:
        record = measure(progress=progress, **options)
    emit(record, run, **shown)
    say("With a run of your own: moegeo analyze RUN_FOLDER")
