"""`invariance`: measures which metrics change when the weights are rewritten with equal outputs."""

from moegeo_cli.options import FactsOutput, Invariance
from moegeo_cli.registry import Command

COMMAND = Command(
    "invariance",
    Invariance,
    (FactsOutput,),
    place=8,
    record="moegeo_cli.commands.invariance.record:InvarianceRecord",
    format="moegeo.invariance",
    printer="moegeo_cli.commands.invariance.report:print_invariance",
)
