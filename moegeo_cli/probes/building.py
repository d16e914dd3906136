"""Build a probe file from the user's own texts: `moegeo probe build`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.probes.chat import Encode, open_chat
from moegeo_cli.probes.loading import check_vocabulary
from moegeo_cli.probes.reading import read_file
from moegeo_cli.probes.rows import Header, ReadOptions, Row, printable
from moegeo_cli.probes.tokenizing import Tokenizer, open_tokenizer

MAX_SEQUENCES = 256


@keeps_global_state
def build_probe(
    sources: Sequence[tuple[str | None, Path]],
    *,
    tokenizer_dir: Path | None = None,
    vocab_size: int | None = None,
    max_sequences: int = MAX_SEQUENCES,
    max_tokens: int | None = None,
    seed: int = 0,
    text_key: str | None = None,
    domain_key: str | None = None,
) -> str:
    """Draw passages from texts: equally many from each domain, interleaved, no passage twice.

    Args:
        sources: (domain, file) pairs; files in any format that `analyze` reads.
        tokenizer_dir: a checkpoint whose tokenizer turns the passages into ids; None keeps
            text, which fits any model.
        vocab_size: vocabulary size of that checkpoint's model; None skips the check.
        max_sequences: largest number of sequences.
        max_tokens: largest number of tokens; of bytes if no tokenizer is given.
        seed: seed of the random draw.
        text_key: key of a record's text, token ids or messages; None for the usual keys.
        domain_key: key of a record's domain; None for "domain".

    Returns:
        The probe file, as JSON Lines: a header with the content's hash, then the sequences.
        The same input and seed give the same bytes.

    Raises:
        ProbeError: a source cannot be read, the sources hold ids of different tokenizers, or
            there is no passage.
    """
    options = ReadOptions(text_key, domain_key, vocab_size)
    columns, header = _read_sources(sources, options)
    if tokenizer_dir is not None:
        tokenizer = open_tokenizer(tokenizer_dir, vocab_size or 0)
        if header.tokenizer not in (None, tokenizer.name):
            raise ProbeError(
                "a source was made with another tokenizer than the checkpoint's",
                found=f"{header.tokenizer[:12]} against {tokenizer.name[:12]}",
                hint="give its text instead",
            )
        chats = any(row.chat is not None for rows in columns.values() for row in rows)
        chat = open_chat(tokenizer_dir) if chats else None
        columns = {
            domain: [_encode(row, tokenizer, chat, vocab_size) for row in rows]
            for domain, rows in columns.items()
        }
        header = Header(tokenizer.name, vocab_size)
    rows = _choose(columns, max_sequences, max_tokens, seed)
    if not rows:
        raise ProbeError(
            "there is no passage to build a probe of",
            found="none at all" if max_tokens is None else f"none of at most {max_tokens} tokens",
            hint="give text files",
        )
    body = "".join(_render(row) for row in rows)
    return replace(header, sha256=hashlib.sha256(body.encode()).hexdigest()).render() + body


def _read_sources(
    sources: Sequence[tuple[str | None, Path]], options: ReadOptions
) -> tuple[dict[str | None, list[Row]], Header]:
    """Rows by domain without duplicates, and a header with the tokenizer that made their ids."""
    columns: dict[str | None, list[Row]] = {}
    seen: set[bytes] = set()
    made: dict[str | None, Header] = {}
    for domain, path in sources:
        file = read_file(path, options)
        if file.rows[0].inputs is not None:
            raise ProbeError(
                f"{printable(path.name)} holds other inputs than text or token ids",
                found=", ".join(sorted(file.rows[0].inputs))[:200],
                hint="give such a file to --probe as it is",
            )
        if any(row.input_ids is not None for row in file.rows):
            header = file.header or Header()
            made[header.tokenizer] = replace(header, sha256=None)
        for row in file.rows:
            content = hashlib.sha256(_render(replace(row, domain=None)).encode()).digest()
            if content not in seen:
                seen.add(content)
                named = replace(row, domain=domain or row.domain)
                columns.setdefault(named.domain, []).append(named)
    if len(made) > 1:
        raise ProbeError(
            "the sources hold ids of different tokenizers",
            found=", ".join(sorted("unknown" if n is None else printable(n)[:12] for n in made)),
            hint="build from text",
        )
    return columns, next(iter(made.values()), Header())


def _encode(row: Row, tokenizer: Tokenizer, chat: Encode | None, vocab_size: int | None) -> Row:
    if row.chat is not None:
        assert chat is not None
        ids_N, labels_N = chat(row.chat, f"row {row.line}")
        row = replace(row, input_ids=ids_N, labels=labels_N, chat=None)
    elif row.input_ids is None:
        row = replace(row, input_ids=tokenizer.encode(row.text or ""), text=None)
    assert row.input_ids is not None
    if vocab_size is not None:
        check_vocabulary(row.input_ids, row.labels, row, "built", vocab_size)
    return row


def _choose(
    columns: dict[str | None, list[Row]], max_sequences: int, max_tokens: int | None, seed: int
) -> list[Row]:
    """Take one row of each domain in turn until the limits are reached."""
    generator = np.random.default_rng(seed)
    queues = [
        [rows[i] for i in generator.permutation(len(rows)) if _size(rows[i])]
        for _, rows in sorted(columns.items(), key=lambda c: str(c[0]))
    ]
    longest = max(map(len, queues), default=0)
    mixed = [q[place] for place in range(longest) for q in queues if place < len(q)]
    chosen: list[Row] = []
    left = max_tokens
    for row in mixed[:max_sequences]:
        if left is not None and _size(row) > left:
            continue
        chosen.append(row)
        left = None if left is None else left - _size(row)
    return chosen


def _size(row: Row) -> int:
    if row.chat is not None:
        return len(row.chat.render().encode())
    return len((row.text or "").encode()) if row.input_ids is None else len(row.input_ids)


def _render(row: Row) -> str:
    """A row as a line of JSON."""
    line: dict[str, Any] = dict(_facts(row))
    return json.dumps(line, ensure_ascii=False) + "\n"


def _facts(row: Row) -> Iterator[tuple[str, Any]]:
    if row.domain is not None:
        yield "domain", row.domain
    if row.chat is not None:
        yield "messages", list(row.chat.messages)
        if row.chat.tools is not None:
            yield "tools", list(row.chat.tools)
        return
    if row.input_ids is None:
        yield "text", row.text
        return
    yield "input_ids", row.input_ids.tolist()
    if row.labels is not None:
        yield "labels", row.labels.tolist()
