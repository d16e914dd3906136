"""`report` of the Python API: loads the last analysis of a run, or a JSON report."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from moegeo_cli.errors import PathError, UsageError
from moegeo_cli.keywords import takes
from moegeo_cli.measuring.keeping import load_report
from moegeo_cli.options import StorePlace
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.reports.json_report import read_any


@takes(StorePlace)
def report(path: Path | str, **options: Unpack[StorePlace]) -> AnyRecord:
    """Load the result of the last `analyze` of a run from its store, or a JSON report.

    No model is loaded.

    Args:
        path: a run or checkpoint, or a JSON report of any command.
        options: see below.

    Returns:
        The record.

    Raises:
        PathError: the path does not exist or cannot be read.
        UsageError: the store holds no analysis of the run.
        FormatError: the file is not a report of moegeo.
    """
    path = Path(path)
    if path.is_file():
        try:
            return read_any(path.read_bytes())
        except OSError as error:
            raise PathError(f"{path} cannot be read", found=str(error)) from error
    if not path.exists():
        raise PathError(f"{path} does not exist")
    stored = load_report(path, options["cache_dir"])
    if stored is None:
        raise UsageError(
            f"the store holds no analysis of {path}",
            found="none by this version of moegeo, in .moegeo or --cache-dir",
            hint=f"moegeo analyze {path}",
        )
    return stored
