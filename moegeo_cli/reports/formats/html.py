"""One HTML file that loads nothing from elsewhere."""

from moegeo_cli.registry import Format

FORMAT = Format("html", place=6, suffixes=(".html", ".htm"), page="moegeo_cli.reports.html:render")
