"""Turn the columns of a table into rows, one Arrow batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.messages import CHATS
from moegeo_cli.probes.packing import FIELDS
from moegeo_cli.probes.records import CONTENTS, rows_of
from moegeo_cli.probes.rows import (
    ProbeFile,
    ReadOptions,
    Row,
    hash_rows,
    missing_library,
    printable,
)

EMPTY = "{name}: {count:,} rows without text or tokens are left out"


def import_arrow(path: Path, what: str) -> Any:
    """Import pyarrow.

    Raises:
        ProbeError: it is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise missing_library("pyarrow", printable(path.name), what) from error
    return pyarrow


def choose_columns(names: Iterable[str], options: ReadOptions, name: str) -> list[str]:
    """The columns to read: the usual names, and those that the user names.

    Raises:
        ProbeError: no column holds text or tokens.
    """
    names = list(names)
    keys = [k for k in (options.text_key, options.domain_key) if k]
    known = {*CONTENTS, *CHATS, *FIELDS, "tools", "system", "domain",
             *keys, *(k.partition(".")[0] for k in keys)}  # fmt: skip
    if options.text_key is not None:
        known -= set(CONTENTS) - {options.text_key, "input_ids"}
    found = [column for column in names if column in known]
    if options.text_key is None and not set(found) & set(CONTENTS):
        raise ProbeError(
            f"{name} has no column of text, input_ids or messages",
            found=", ".join(map(printable, names))[:200] or "no column",
            hint="name the right one with --text-key",
        )
    return found


def read_records(
    records: Iterable[tuple[int, dict[str, Any]]],
    name: str,
    options: ReadOptions,
    notes: Iterable[str],
) -> ProbeFile:
    """The rows of numbered records. Empty records are skipped, and a note counts them."""
    rows: list[Row] = []
    empty = 0
    for number, record in records:
        if _empty(record, options):
            empty += 1
            continue
        rows += rows_of(record, number, f"row {number} of {name}", options)
    left = [EMPTY.format(name=name, count=empty)] if empty else []
    return ProbeFile(tuple(rows), hash_rows(rows), None, (*notes, *left))


def _empty(record: dict[str, Any], options: ReadOptions) -> bool:
    keys = (options.text_key,) if options.text_key else CONTENTS
    found = [record[key] for key in keys if key in record]
    return bool(found) and all(value is None or len(value) == 0 for value in found
                               if value is None or hasattr(value, "__len__"))  # fmt: skip


def records_of(batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of batches, each with its number from 1; lists of integers stay arrays.

    Args:
        batches: pairs of (number of earlier rows in the file, batch).
    """
    for before, batch in batches:
        columns = {n: _values(batch.column(n)) for n in batch.schema.names}
        for place in range(batch.num_rows):
            yield before + place + 1, {n: values[place] for n, values in columns.items()}


def _values(column: Any) -> list[Any]:
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    lists = types.is_list(kind) or types.is_large_list(kind)
    if not lists or not types.is_integer(kind.value_type) or column.flatten().null_count:
        return list(column.to_pylist())
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist() if isinstance(column, pyarrow.Array) else []
    return [values[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(column))]
