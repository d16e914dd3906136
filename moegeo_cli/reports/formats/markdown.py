"""GitHub-flavoured markdown."""

from moegeo_cli.registry import Format

FORMAT = Format(
    "markdown",
    place=2,
    suffixes=(".md", ".markdown"),
    writers={
        "moegeo.run": "moegeo_cli.reports.markdown:render",
        "moegeo.compare": "moegeo_cli.reports.comparison_text:render_markdown",
        "moegeo.check": "moegeo_cli.reports.check_report:render_markdown",
    },
    lens="render_markdown",
)
