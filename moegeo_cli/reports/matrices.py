"""E × E matrices of experts as a file: safetensors, or CSV with one row per pair."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from moegeo_cli.errors import UsageError
from moegeo_cli.records.lenses import LensRecord

SUFFIXES = (".safetensors", ".csv")
# Matrices that are not symmetric. Of the others, CSV holds one half.
ASYMMETRIC = {"alignment_null", "coactivation", "coactivation_expected"}


def check_name(path: Path) -> None:
    """Refuse a file name with an unknown suffix.

    Raises:
        UsageError: the suffix is neither .safetensors nor .csv.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            "--matrices takes a .safetensors or a .csv file",
            found=path.name,
            hint="--matrices experts.safetensors",
        )


def matrices_file(record: LensRecord, path: Path) -> bytes | str:
    """The matrices of all layers, in the format of the file's suffix.

    safetensors has a float64 tensor `<router>.<matrix>` for each matrix, with NaN for a pair that
    was not measured. CSV has the columns layer, router, matrix, a, b and value, with an empty
    value for such a pair.
    """
    if path.suffix.lower() == ".csv":
        return _csv(record)
    import numpy as np
    from safetensors.numpy import save

    data: bytes = save({
        f"{layer.router}.{name}": np.array(
            [[np.nan if v is None else v for v in row] for row in matrix], dtype=np.float64
        )
        for layer in record.layers
        for name, matrix in layer.matrices.items()
    })  # fmt: skip
    return data


def _csv(record: LensRecord) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["layer", "router", "matrix", "a", "b", "value"])
    for layer in record.layers:
        for name, matrix in layer.matrices.items():
            for a, row in enumerate(matrix):
                for b, value in enumerate(row):
                    if a < b or (name in ASYMMETRIC and a != b):
                        shown = "" if value is None else repr(value)
                        writer.writerow([layer.layer, layer.router, name, a, b, shown])
    return file.getvalue()
