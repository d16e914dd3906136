"""Every metric of a record as a Parquet file: the frame `metrics`."""

from __future__ import annotations

import io

from moegeo_cli.errors import UsageError
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.reports.frames import to_frame


def render(record: AnyRecord) -> bytes:
    """The bytes of the file. The same record gives the same bytes.

    Raises:
        UsageError: pyarrow is not installed.
    """
    file = io.BytesIO()
    try:
        to_frame(record, "metrics").convert_dtypes().to_parquet(file, engine="pyarrow", index=False)
    except ImportError as error:
        raise UsageError(
            "Parquet needs pyarrow", found="not installed", hint="pip install 'moegeo[parquet]'"
        ) from error
    return file.getvalue()
