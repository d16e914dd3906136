"""Turn one record of a probe file (a JSON object, a row of a table) into sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.messages import CHATS, read_chat
from moegeo_cli.probes.packing import FIELDS, cut_row
from moegeo_cli.probes.rows import MAX_DOMAIN, ReadOptions, Row, is_domain, is_text, printable

CONTENTS = ("input_ids", "text", *CHATS)


def rows_of(data: Any, number: int, where: str, options: ReadOptions) -> Iterator[Row]:
    """The sequences of a record: one, or several that were packed into it.

    Args:
        data: the record, as a mapping.
        number: its line or row, from 1.
        where: its place in the file in words, for errors.
        options: the keys to read.

    Raises:
        ProbeError: the record is not understood.
    """
    if not isinstance(data, dict):
        raise ProbeError(
            f"{where} is not a record",
            found="no object",
            hint="give an object with input_ids or text",
        )
    key = _content_key(data, where, options.text_key)
    content = data[key] if key in data else _lookup(data, key)
    domain = _domain(data, where, options.domain_key)
    fields = {name: data[name] for name in FIELDS if data.get(name) is not None}
    if key == "text" or (isinstance(content, str) and key not in CONTENTS):
        _refuse_fields(fields, data, where, "text")
        yield Row(number, text=_text(content, where, key), domain=domain)
    elif key in CHATS or (isinstance(content, list) and content and isinstance(content[0], dict)):
        _refuse_fields(fields, data, where, "chat")
        yield Row(number, chat=read_chat(content, data, where), domain=domain)
    else:
        ids_N = integers(content, key, where)
        arrays = {
            name: integers(value, name, where)
            for name, value in fields.items()
            if name == "labels" or isinstance(value, list | np.ndarray)
        }
        for piece in cut_row(ids_N, arrays, where):
            yield Row(number, input_ids=piece.input_ids, labels=piece.labels, domain=domain)


def _content_key(data: Mapping[str, Any], where: str, text_key: str | None) -> str:
    keys = ", ".join(map(repr, sorted(map(str, data))))[:200] or "an empty object"
    if text_key is not None:
        if text_key in data or _lookup(data, text_key) is not None:
            return text_key
        raise ProbeError(
            f"{where} has no {printable(text_key)}", found=keys,
            hint="--text-key names the key of the text, the token ids or the messages",
        )  # fmt: skip
    found = [key for key in CONTENTS if key in data]
    if len(found) == 1:
        return found[0]
    raise ProbeError(
        f"{where} needs either input_ids or text, or messages",
        found=keys,
        hint="name the right one with --text-key",
    )


def _lookup(data: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key like meta.language; None if there is none."""
    found: Any = data
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _domain(data: Mapping[str, Any], where: str, key: str | None) -> str | None:
    if key is not None and key not in data and key.partition(".")[0] not in data:
        keys = ", ".join(map(repr, sorted(map(str, data))))[:200]
        raise ProbeError(f"{where} has no {printable(key)}", found=keys,
                         hint="--domain-key names the key of the domain")  # fmt: skip
    name = key or "domain"
    domain = data[name] if name in data else _lookup(data, name)
    if key is not None and type(domain) is int:
        domain = str(domain)
    if domain is not None and not is_domain(domain):
        raise ProbeError(
            f"the domain in {where} is not a short name",
            found=ascii(domain)[:80],
            hint=f"a string of printable characters, at most {MAX_DOMAIN}",
        )
    return None if domain is None else str(domain)


def _refuse_fields(
    fields: Mapping[str, Any], data: Mapping[str, Any], where: str, kind: str
) -> None:
    """Refuse masks and labels of tokens in a record without token ids."""
    of_tokens = [name for name, value in fields.items() if isinstance(value, list | np.ndarray)]
    if of_tokens and "input_ids" not in data:
        raise ProbeError(
            f"{where} has {of_tokens[0]}, but no input_ids",
            found=f"a {kind}",
            hint=f"give input_ids with {of_tokens[0]}",
        )


def _text(text: Any, where: str, key: str) -> str:
    if not isinstance(text, str) or not text:
        raise ProbeError(f"the {printable(key)} in {where} holds no token",
                         found=ascii(text)[:80])  # fmt: skip
    if not is_text(text):
        raise ProbeError(f"the text in {where} is not Unicode", found="half of a surrogate")
    return text


def integers(values: Any, name: str, where: str) -> np.ndarray:
    """The integers of a record as an array; a list becomes int64, an array keeps its type.

    Raises:
        ProbeError: there are no values, or values that are not integers.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "b":
        values = values.astype(np.int64)
    if isinstance(values, np.ndarray) and len(values) and values.dtype.kind in "iu":
        return values
    if not isinstance(values, list) or not values:
        raise ProbeError(f"{printable(name)} in {where} hold no token", found=ascii(values)[:80])
    if name not in ("input_ids", "labels"):
        values = [int(v) if type(v) is bool else v for v in values]
    for value in values:
        if type(value) is not int or not -(2**62) < value < 2**62:
            raise ProbeError(f"{printable(name)} in {where} are not all integers",
                             found=ascii(value)[:80])  # fmt: skip
    return np.array(values, dtype=np.int64)
