"""`inspect`: what a checkpoint or a run is, from headers alone."""

from moegeo_cli.options import FactsOutput, Model
from moegeo_cli.registry import Command

COMMAND = Command("inspect", Model, (FactsOutput,), place=5)
