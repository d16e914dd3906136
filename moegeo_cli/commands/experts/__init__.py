"""`experts`: measures how similar experts are, in their functions and in their inputs."""

from moegeo_cli.options import Experts, LensOutput
from moegeo_cli.registry import Argument, Command, Lens

COMMAND = Command(
    "experts",
    Experts,
    (LensOutput,),
    place=6,
    record="moegeo_cli.commands.experts.record:ExpertsRecord",
    format="moegeo.experts",
    page="moegeo_cli.commands.experts.html:experts_page",
    screen="moegeo_cli.commands.experts.screen:experts_screen",
    lens=Lens(
        report="moegeo_cli.commands.experts.report", rules="moegeo_cli.commands.experts.rules:RULES"
    ),
    arguments=(Argument("path", "A checkpoint, or a run (its newest one is used)."),),
    help="""
    Measure how similar experts are, in function and in inputs; list which to merge or prune.

    [bold]moegeo experts runs/my-moe/checkpoint-1000[/bold]
    [bold]moegeo experts runs/my-moe --verify 4 --matrices pairs.safetensors[/bold]
    """,
)
