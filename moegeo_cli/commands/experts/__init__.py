"""`experts`: how alike experts are, by what they do and by what they see."""

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
    arguments=(Argument("path", "A checkpoint, or a run: then its newest one."),),
    help="""
    How alike are the experts, in what they do and in what they see; which to merge or prune.

    [bold]moegeo experts runs/my-moe/checkpoint-1000[/bold]
    [bold]moegeo experts runs/my-moe --verify 4 --matrices pairs.safetensors[/bold]
    """,
)
