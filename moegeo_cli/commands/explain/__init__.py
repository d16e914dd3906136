"""`moegeo explain`: explains a name that a report prints."""

from moegeo_cli.options import FactsOutput, NoOptions
from moegeo_cli.registry import Command

COMMAND = Command("explain", NoOptions, (FactsOutput,), place=4)
