"""Read a probe file of any form into rows. Anything that is not understood is an error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.dataset import summarize_lengths
from moegeo_cli.probes.forms import form_of
from moegeo_cli.probes.forms.arrow import is_saved_dataset
from moegeo_cli.probes.rows import FORMATS, MAX_DOMAINS, ProbeFile, ReadOptions, Row, printable

ANY = ReadOptions()


def read_file(path: Path, options: ReadOptions = ANY) -> ProbeFile:
    """Read a probe file; a file of no known form is read as plain text.

    Raises:
        ProbeError: the file does not exist, is too large, is damaged, or holds no token.
    """
    name = printable(path.name)
    try:
        path.stat()
        if not path.is_file() and not is_saved_dataset(path):
            raise _no_file(path, name)
        form = form_of(path)
        if form.read is None:
            raise ProbeError(
                f"the probe {name} has a form that is not supported",
                found=form.name,
                hint=form.instead,
            )
        found = form.read(path, options)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path itself
        raise ProbeError(
            f"the probe {printable(str(path))} cannot be read",
            found=getattr(error, "strerror", None) or str(error)[:200],
            hint=f"give {FORMATS}",
        ) from error
    except MemoryError as error:
        raise ProbeError(f"the probe {name} is too large for this machine's memory") from error
    if not found.rows:
        raise ProbeError(f"the probe {name} holds no token", hint=f"give {FORMATS}")
    domains = {row.domain for row in found.rows}
    if options.domain_key is not None and len(domains) > MAX_DOMAINS:
        raise ProbeError(
            f"{printable(options.domain_key)} in {name} names too many domains",
            found=f"{len(domains):,}, at most {MAX_DOMAINS}",
            hint="choose a key with few values, for example the language",
        )
    return found


def _no_file(path: Path, name: str) -> ProbeError:
    inside: list[Path] = []
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if form_of(p).read and p.suffix in FOUND_WITHIN)
    return ProbeError(
        f"the probe {name} is not a file",
        found="a folder" if path.is_dir() else "a pipe or a device",
        hint=f"give one of its files: --probe {printable(str(inside[0]))}"
        if inside
        else f"give {FORMATS}",
    )


FOUND_WITHIN = (".parquet", ".jsonl", ".arrow", ".npy")


def describe_rows(file: ProbeFile) -> dict[str, Any]:
    """Facts about a probe file that need no model. Sizes are in tokens for ids, bytes for text."""
    sizes = [_size(row) for row in file.rows]
    text = [row.text is not None or row.chat is not None for row in file.rows]
    unit = "bytes" if all(text) else "size" if any(text) else "tokens"
    domains = Counter(r.domain for r in file.rows if r.domain is not None)
    return {
        "sha256": file.sha256,
        "sequences": len(file.rows),
        unit: sum(sizes),
        "lengths": summarize_lengths(sizes),
        "domains": dict(sorted(domains.items())),
        "tokenizer": file.header.tokenizer if file.header else None,
    }


def _size(row: Row) -> int:
    if row.text is not None:
        return len(row.text.encode())
    if row.chat is not None:
        return sum(len(str(m.get("content", "")).encode()) for m in row.chat.messages)
    return row.positions if row.input_ids is None else len(row.input_ids)
