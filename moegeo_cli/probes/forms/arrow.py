"""Read Arrow files and streams, and the folders that `datasets` saves and caches.

The file is memory-mapped; only the chosen batches are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.tables import choose_columns, import_arrow, read_records, records_of
from moegeo_cli.probes.rows import READ_BYTES, ProbeFile, ReadOptions, evenly_spaced, printable

STATE, SPLITS, CACHED = "state.json", "dataset_dict.json", "dataset_info.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
PART = "{name}: {read} of its {total} batches are read, evenly spread"


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, or belongs to the cache of `datasets`."""
    if not path.is_dir():
        return False
    if (path / STATE).is_file() or (path / SPLITS).is_file():
        return True
    return (path / CACHED).is_file() and bool(_cached(path))


def _cached(folder: Path) -> dict[str, list[Path]]:
    """The splits of a cache folder, each with its files in order."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.arrow")):
        if not file.name.startswith(("cache-", "tmp")):  # written by map() and filter()
            found.setdefault(_SHARD.sub("", file.stem), []).append(file)
    return found


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The rows of an Arrow table, or of all files of a saved data set."""
    name = printable(path.name)
    arrow = import_arrow(path, "an Arrow table")
    files = _files(path, name) if path.is_dir() else [path]
    try:
        batches = [batch for file in files for batch in _open(arrow, file)]
        if not batches:
            return ProbeFile((), "")
        columns = choose_columns(batches[0].schema.names, options, name)
        sizes = [batch.select(columns).nbytes for batch in batches]
        count = len(batches)
        if sum(sizes) > READ_BYTES:
            count = max(1, len(batches) * READ_BYTES // sum(sizes))
        chosen = evenly_spaced(len(batches), count)
        part = [PART.format(name=name, read=count, total=len(batches))]
        return read_records(
            records_of(_numbered(batches, chosen, columns)), name, options,
            part if count < len(batches) else (),
        )  # fmt: skip
    except (arrow.ArrowException, KeyError) as error:
        raise ProbeError(
            f"{name} cannot be read as Arrow", found=str(error)[:200],
            hint="save it again, or give its rows as JSON Lines",
        ) from error  # fmt: skip


def _files(folder: Path, name: str) -> list[Path]:
    if (folder / SPLITS).is_file():
        splits = [p.name for p in sorted(folder.iterdir()) if (p / STATE).is_file()]
        raise _several(name, splits, folder / splits[0] if splits else None)
    if not (folder / STATE).is_file():
        cached = _cached(folder)
        if len(cached) > 1:
            raise _several(name, list(cached), next(iter(cached.values()))[0])
        return next(iter(cached.values()))
    try:
        state = json.loads((folder / STATE).read_bytes())
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProbeError(f"{STATE} in {name} is not one of datasets", found=str(error)[:200],
                         hint="save it again with save_to_disk") from error  # fmt: skip
    if state.get("_indices_data_files"):
        raise ProbeError(
            f"the probe {name} is a selection of rows that are stored elsewhere", found=STATE,
            hint="dataset.flatten_indices().save_to_disk(…) writes the rows themselves",
        )  # fmt: skip
    return files


def _several(name: str, splits: list[str], first: Path | None) -> ProbeError:
    return ProbeError(
        f"the probe {name} is a data set of several splits",
        found=", ".join(map(printable, splits))[:200],
        hint="save it again"
        if first is None
        else f"give one of them: --probe {printable(str(first))}",
    )


def _open(arrow: Any, path: Path) -> list[Any]:
    source = arrow.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        reader = arrow.ipc.open_file(source)
        return [reader.get_batch(place) for place in range(reader.num_record_batches)]
    source.seek(0)
    return list(arrow.ipc.open_stream(source))


def _numbered(
    batches: list[Any], chosen: list[int], columns: list[str]
) -> Iterator[tuple[int, Any]]:
    before, share = 0, READ_BYTES // len(chosen)
    for place, batch in enumerate(batches):
        if place in chosen:
            own = batch.select(columns)
            rows = (
                own.num_rows if own.nbytes <= share else max(1, own.num_rows * share // own.nbytes)
            )
            yield before, own.slice(0, rows)
        before += batch.num_rows
