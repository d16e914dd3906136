"""`watch`: a run that grows, each checkpoint judged once it is whole."""

from moegeo_cli.options import Watch, WatchOutput
from moegeo_cli.registry import Command

COMMAND = Command("watch", Watch, (WatchOutput,), place=1)
