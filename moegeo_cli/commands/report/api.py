"""`report` of the Python API: what the last analysis found, from the store or from its JSON."""

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
    """The result of the last `analyze` of a run, from the store. No model is loaded.

    Args:
        path: the run or checkpoint; or a JSON file that any command wrote.
        options: see below.

    Raises:
        PathError: nothing is there.
        UsageError: no analysis is kept.
        FormatError: a file that is no report.
    """
    path = Path(path)
    if path.is_file():
        try:
            return read_any(path.read_bytes())
        except OSError as error:
            raise PathError(f"{path} cannot be read", found=str(error)) from error
    if not path.exists():
        raise PathError(f"{path} does not exist")
    kept = load_report(path, options["cache_dir"])
    if kept is None:
        raise UsageError(
            f"the store holds no analysis of {path}",
            found="none by this version of moegeo, in .moegeo or --cache-dir",
            hint=f"moegeo analyze {path}",
        )
    return kept
