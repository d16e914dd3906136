"""`inspect`: describes a checkpoint or a run from headers alone."""

from moegeo_cli.options import FactsOutput, Model
from moegeo_cli.registry import Command

COMMAND = Command(
    "inspect",
    Model,
    (FactsOutput,),
    place=5,
    record="moegeo_cli.commands.inspect.record:InspectionRecord",
    format="moegeo.inspect",
    printer="moegeo_cli.commands.inspect.report:print_inspection",
)
