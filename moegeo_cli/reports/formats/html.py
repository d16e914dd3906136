"""One HTML file that loads no other file."""

from moegeo_cli.registry import Format

FORMAT = Format("html", place=6, suffixes=(".html", ".htm"), page="moegeo_cli.reports.html:render")
