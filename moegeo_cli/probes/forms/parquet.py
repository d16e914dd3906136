"""Read Parquet: only the needed columns; of a large file, evenly spaced row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.tables import choose_columns, import_arrow, read_records, records_of
from moegeo_cli.probes.rows import READ_BYTES, ProbeFile, ReadOptions, evenly_spaced, printable

BATCH_ROWS = 256
PART = "{name}: {read} of its {total} row groups are read, evenly spread"


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The rows of a Parquet table."""
    name = printable(path.name)
    arrow = import_arrow(path, "a Parquet file")
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            columns = choose_columns(file.schema_arrow.names, options, name)
            groups, share = _choose(file.metadata, columns)
            total = file.metadata.num_row_groups
            part = [PART.format(name=name, read=len(groups), total=total)]
            return read_records(
                records_of(_batches(file, groups, columns, share)), name, options,
                part if len(groups) < total else (),
            )  # fmt: skip
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ProbeError(
            f"{name} cannot be read as Parquet", found=str(error)[:200],
            hint="write it again, or give its rows as JSON Lines",
        ) from error  # fmt: skip


def _choose(metadata: Any, columns: list[str]) -> tuple[list[int], int]:
    """Which row groups are read, and the largest number of bytes read of each."""
    sizes = []
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        chunks = [group.column(c) for c in range(group.num_columns)]
        sizes.append(sum(c.total_uncompressed_size for c in chunks
                         if c.path_in_schema.partition(".")[0] in columns))  # fmt: skip
    total = sum(sizes)
    if total <= READ_BYTES:
        return list(range(len(sizes))), max(total, READ_BYTES)
    most = max(1, len(sizes) * READ_BYTES // total)
    groups = evenly_spaced(len(sizes), most)
    return groups, READ_BYTES // len(groups)


def _batches(
    file: Any, groups: list[int], columns: list[str], share: int
) -> Iterator[tuple[int, Any]]:
    starts = [0]
    for place in range(file.metadata.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(place).num_rows)
    for group in groups:
        before, taken = starts[group], 0
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
            yield before, batch
            before += batch.num_rows
            taken += batch.nbytes
            if taken > share:
                break
