"""`moegeo report`: a report from stored results, without a model."""

from moegeo_cli.options import RunOutput, StorePlace
from moegeo_cli.registry import Command

COMMAND = Command("report", StorePlace, (RunOutput,), place=3)
