"""`moegeo report`: a report of what is kept, without a model."""

from moegeo_cli.options import RunOutput, StorePlace
from moegeo_cli.registry import Command

COMMAND = Command("report", StorePlace, (RunOutput,), place=3)
