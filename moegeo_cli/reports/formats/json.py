"""JSON, described by a schema."""

from moegeo_cli.registry import Format

FORMAT = Format("json", place=1, suffixes=(".json",), every="moegeo_cli.reports.json_report:render")
