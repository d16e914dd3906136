"""The terminal report; plain text if it is written to a file."""

from moegeo_cli.registry import Format

FORMAT = Format(
    "rich",
    place=0,
    writers={
        "moegeo.run": "moegeo_cli.reports.terminal:render",
        "moegeo.compare": "moegeo_cli.reports.comparison_terminal:render",
        "moegeo.check": "moegeo_cli.reports.check_report:render",
    },
    lens="render",
)
