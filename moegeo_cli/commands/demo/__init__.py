"""`demo`: analyzes a sample run that is part of the package."""

from moegeo_cli.options import Demo, RunOutput
from moegeo_cli.registry import Command

COMMAND = Command("demo", Demo, (RunOutput,), place=4)
