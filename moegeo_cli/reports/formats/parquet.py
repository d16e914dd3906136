"""Parquet: one row per metric, for data frames."""

from moegeo_cli.registry import Format

FORMAT = Format(
    "parquet",
    place=7,
    suffixes=(".parquet",),
    page="moegeo_cli.reports.parquet:render",
    needs="pyarrow",
)
