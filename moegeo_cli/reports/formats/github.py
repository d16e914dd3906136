"""Annotations of a GitHub workflow."""

from moegeo_cli.registry import Format

FORMAT = Format(
    "github",
    place=5,
    writers={
        "moegeo.run": "moegeo_cli.reports.github:render",
        "moegeo.compare": "moegeo_cli.reports.github:render_comparison",
        "moegeo.check": "moegeo_cli.reports.github:render_check",
    },
)
