"""`compare`: compares two runs at matched progress."""

from moegeo_cli.options import Compare, ReportOutput
from moegeo_cli.registry import Command

COMMAND = Command(
    "compare",
    Compare,
    (ReportOutput,),
    place=2,
    record="moegeo_cli.records.comparison:ComparisonRecord",
    format="moegeo.compare",
    page="moegeo_cli.reports.html.comparison:comparison_page",
    screen="moegeo_cli.reports.comparison_screen:comparison_screen",
)
