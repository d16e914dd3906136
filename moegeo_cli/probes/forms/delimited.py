"""Read CSV and TSV files with a header line; each row is a record."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.opening import inner_suffix, open_bytes
from moegeo_cli.probes.forms.tables import choose_columns, read_records
from moegeo_cli.probes.rows import ProbeFile, ReadOptions, printable


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The texts of one column, with their domains from another."""
    import pandas

    name = printable(path.name)
    mark = "\t" if inner_suffix(path) == ".tsv" else ","
    try:
        with open_bytes(path) as file:
            table = pandas.read_csv(file, sep=mark, dtype=str, keep_default_na=False)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ProbeError(f"{name} is not a table with a header line",
                         found=str(error).strip()[:200],
                         hint="give its text column as JSON Lines") from error  # fmt: skip
    names = [str(column) for column in table.columns]
    table.columns = names
    columns = [c for c in choose_columns(names, options, name)
               if c in ("text", "domain", options.text_key, options.domain_key)]  # fmt: skip
    found = table[columns].to_dict("records")
    return read_records(
        ((place, {str(k): v for k, v in record.items()}) for place, record in enumerate(found, 2)),
        name, options, (),
    )  # fmt: skip
