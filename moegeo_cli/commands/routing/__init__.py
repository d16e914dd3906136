"""`routing`: measures what the choice of experts depends on."""

from moegeo_cli.options import LensOutput, Routing
from moegeo_cli.registry import Argument, Command, Lens

COMMAND = Command(
    "routing",
    Routing,
    (LensOutput,),
    place=7,
    record="moegeo_cli.commands.routing.record:RoutingRecord",
    format="moegeo.routing",
    page="moegeo_cli.commands.routing.html:routing_page",
    screen="moegeo_cli.commands.routing.screen:routing_screen",
    lens=Lens(
        report="moegeo_cli.commands.routing.report", rules="moegeo_cli.commands.routing.rules:RULES"
    ),
    arguments=(
        Argument("path", "A checkpoint, or a run (its newest checkpoint, with trends)."),
        Argument("other", "A second model, to compare on the same tokens.", optional=True),
    ),
    help="""
    Measure what routing depends on: hidden geometry, a shared direction, domains, depth, prompts.

    [bold]moegeo routing runs/my-moe[/bold]
    [bold]moegeo routing runs/my-moe/checkpoint-1000 --generate 32 --format json[/bold]
    [bold]moegeo routing runs/base runs/tuned[/bold]
    """,
)
