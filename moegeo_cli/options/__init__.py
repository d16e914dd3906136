"""Every option of moegeo, declared once: its name, type, default, help text and lower bound.

A group is a TypedDict whose fields are options. A command takes one or several groups. The Python
API, the command line, the settings file and the reference page are derived from these
declarations (`keywords.py`, `cli/options.py`).

`measuring`, `judging` and `output` declare the options; `commands` says which command takes which,
and `probe` declares what `moegeo probe` takes.
"""

from moegeo_cli.options.commands import (
    Analyze,
    Check,
    Compare,
    Demo,
    Experts,
    Invariance,
    NoOptions,
    Routing,
    Watch,
)
from moegeo_cli.options.judging import Gate
from moegeo_cli.options.measuring import (
    CheckpointChoice,
    Exact,
    Model,
    Storage,
    StorePlace,
)
from moegeo_cli.options.output import (
    FactsOutput,
    FileOutput,
    LensOutput,
    ReportOutput,
    RunOutput,
    WatchOutput,
)
from moegeo_cli.options.probe import PROBE_COMMANDS

__all__ = [
    "PROBE_COMMANDS", "Analyze", "Check", "CheckpointChoice", "Compare", "Demo", "Exact", "Experts",
    "FactsOutput", "FileOutput", "Gate", "Invariance", "LensOutput", "Model", "NoOptions",
    "ReportOutput", "Routing", "RunOutput", "Storage", "StorePlace", "Watch", "WatchOutput",
]  # fmt: skip
