"""`demo`: `analyze` of a sample run that comes with the package."""

from moegeo_cli.options import Demo, RunOutput
from moegeo_cli.registry import Command

COMMAND = Command("demo", Demo, (RunOutput,), place=4)
