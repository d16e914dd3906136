"""A probe file from a person's own texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.reading import HEADER_KEY, HEADER_VERSION, Row, read_file
from moegeo_cli.probes.tokenizing import open_tokenizer


def build_probe(
    sources: Sequence[tuple[str | None, Path]],
    *,
    tokenizer_dir: Path | None = None,
    vocab_size: int | None = None,
    max_sequences: int = 256,
    seed: int = 0,
) -> str:
    """Choose passages of texts, evenly over the domains, interleaved.

    Args:
        sources: (domain, file) pairs; files in any format that `analyze` reads.
        tokenizer_dir: a checkpoint whose tokenizer turns the passages into ids; None keeps
            text, which fits any model.
        vocab_size: of that checkpoint's model.
        max_sequences: at most so many.
        seed: of the choice.

    Returns:
        The probe file, as JSON Lines.

    Raises:
        ProbeError: a source that cannot be read, or no passage in any.
    """
    by_domain: dict[str | None, list[Row]] = {}
    for domain, path in sources:
        for row in read_file(path).rows:
            by_domain.setdefault(domain or row.domain, []).append(row)
    if not by_domain:
        raise ProbeError("no passage to build a probe of", hint="give text files")
    generator = np.random.default_rng(seed)
    share = -(-max_sequences // len(by_domain))
    columns = []
    for domain in sorted(by_domain, key=str):
        rows = by_domain[domain]
        chosen = np.sort(generator.permutation(len(rows))[:share])
        columns.append([(domain, rows[place]) for place in chosen])
    longest = max(map(len, columns))
    mixed = [c[place] for place in range(longest) for c in columns if place < len(c)]
    header: dict[str, Any] = {HEADER_KEY: HEADER_VERSION}
    encode = None
    if tokenizer_dir is not None:
        tokenizer = open_tokenizer(tokenizer_dir, vocab_size or 0)
        header["tokenizer_sha256"], encode = tokenizer.name, tokenizer.encode
    lines: list[Mapping[str, Any]] = [header]
    for domain, row in mixed[:max_sequences]:
        body: dict[str, Any] = {} if domain is None else {"domain": domain}
        if row.input_ids is not None:
            body["input_ids"] = [int(i) for i in row.input_ids]
            if row.labels is not None:
                body["labels"] = [int(i) for i in row.labels]
        elif encode is None:
            body["text"] = row.text
        else:
            body["input_ids"] = [int(i) for i in encode(row.text or "")]
        lines.append(body)
    return "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
