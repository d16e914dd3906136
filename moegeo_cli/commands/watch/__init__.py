"""`watch`: follows a run while it trains, and judges each checkpoint once it is complete."""

from moegeo_cli.options import Watch, WatchOutput
from moegeo_cli.registry import Command

COMMAND = Command("watch", Watch, (WatchOutput,), place=1)
