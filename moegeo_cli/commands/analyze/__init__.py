"""`analyze`: measures a run's checkpoints, compares them with a baseline, and judges the run."""

from moegeo_cli.options import Analyze, Exact, Gate, RunOutput
from moegeo_cli.registry import Command

COMMAND = Command(
    "analyze",
    Analyze,
    (Exact, Gate, RunOutput),
    place=0,
    record="moegeo_cli.records.run:RunRecord",
    format="moegeo.run",
    page="moegeo_cli.reports.html.run:run_page",
    screen="moegeo_cli.reports.first_screen:run_screen",
)
