"""CSV and TSV with a head line: one row a record."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.opening import inner_suffix, open_bytes
from moegeo_cli.probes.forms.tables import columns_wanted, read_records
from moegeo_cli.probes.rows import ProbeFile, Wanted, printable


def read(path: Path, wanted: Wanted) -> ProbeFile:
    """The texts of one column, and their domains of another."""
    import pandas

    name = printable(path.name)
    mark = "\t" if inner_suffix(path) == ".tsv" else ","
    try:
        with open_bytes(path) as file:
            table = pandas.read_csv(file, sep=mark, dtype=str, keep_default_na=False)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ProbeError(f"{name} is not a table with a head line", found=str(error).strip()[:200],
                         hint="give its text column as JSON Lines") from error  # fmt: skip
    names = [str(column) for column in table.columns]
    table.columns = names
    columns = [c for c in columns_wanted(names, wanted, name)
               if c in ("text", "domain", wanted.text_key, wanted.domain_key)]  # fmt: skip
    found = table[columns].to_dict("records")
    return read_records(
        ((place, {str(k): v for k, v in record.items()}) for place, record in enumerate(found, 2)),
        name, wanted, (),
    )  # fmt: skip
