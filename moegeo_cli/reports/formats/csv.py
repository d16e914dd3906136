"""CSV: one row per router and metric."""

from moegeo_cli.registry import Format

FORMAT = Format(
    "csv",
    place=3,
    suffixes=(".csv",),
    writers={
        "moegeo.run": "moegeo_cli.reports.csv_report:render",
        "moegeo.compare": "moegeo_cli.reports.csv_report:render_comparison",
        "moegeo.check": "moegeo_cli.reports.csv_report:render_check",
    },
)
