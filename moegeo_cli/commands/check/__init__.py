"""`check`: finds faults in the files of a run, without building a model."""

from moegeo_cli.options import Check, Gate, ReportOutput
from moegeo_cli.registry import Command

COMMAND = Command(
    "check",
    Check,
    (Gate, ReportOutput),
    place=1,
    record="moegeo_cli.records.check:CheckRecord",
    format="moegeo.check",
    page="moegeo_cli.reports.html.check:check_page",
    screen="moegeo_cli.reports.check_screen:check_screen",
)
