"""JUnit XML, which CI systems show as tests."""

from moegeo_cli.registry import Format

FORMAT = Format(
    "junit",
    place=4,
    suffixes=(".xml",),
    writers={
        "moegeo.run": "moegeo_cli.reports.junit:render",
        "moegeo.compare": "moegeo_cli.reports.junit:render_comparison",
        "moegeo.check": "moegeo_cli.reports.junit:render_check",
    },
)
