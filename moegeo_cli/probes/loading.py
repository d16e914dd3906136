"""From a probe file, or the bundled one, to the sequences that a model is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.dataset import Probe, Sequence
from moegeo_cli.probes.reading import Row, read_file
from moegeo_cli.probes.tokenizing import open_tokenizer, tokenizer_sha256

BUNDLED = Path(__file__).parent / "data" / "default.jsonl"


def load_probe(
    path: Path | None,
    *,
    vocab_size: int,
    tokenizer_dir: Path,
    max_tokens: int | None = None,
    max_length: int | None = None,
) -> Probe:
    """Read, tokenise and check a probe.

    Args:
        path: a probe file; None for the bundled one.
        vocab_size: of the model.
        tokenizer_dir: the checkpoint, for its tokenizer.
        max_tokens: at most so many, by whole sequences, balanced between domains.
        max_length: the model's context; longer sequences are cut into pieces.

    Raises:
        ProbeError: not readable, made with another tokenizer, ids outside the vocabulary,
            or no token.
    """
    source = BUNDLED if path is None else path
    name = "bundled" if path is None else path.name
    file = read_file(source)
    if file.tokenizer_sha256 is not None:
        own = tokenizer_sha256(tokenizer_dir) or tokenizer_sha256(tokenizer_dir.parent)
        if own is not None and own != file.tokenizer_sha256:
            raise ProbeError(
                f"the probe {name} was made with another tokenizer than the checkpoint's",
                found=f"{file.tokenizer_sha256[:12]} against {own[:12]}",
                hint="build it again: moegeo probe build --tokenizer CHECKPOINT",
            )
    tokenizer = "ids"
    encode = None
    if any(row.text is not None for row in file.rows):
        opened = open_tokenizer(tokenizer_dir, vocab_size)
        tokenizer, encode = opened.name, opened.encode
    sequences: list[Sequence] = []
    for row in file.rows:
        ids = row.input_ids
        if ids is None:
            assert encode is not None
            ids = encode(row.text or "")
        _check_vocabulary(ids, row, name, vocab_size)
        sequences.extend(_pieces(Sequence(ids, row.labels, row.domain), max_length))
    if not sequences:
        raise ProbeError(f"the probe {name} holds no token", hint="give text or input_ids")
    probe = Probe.of(sequences, name, tokenizer)
    return probe if max_tokens is None else probe.take(max_tokens)


def _check_vocabulary(ids_N: np.ndarray, row: Row, name: str, vocab_size: int) -> None:
    outside = (ids_N < 0) | (ids_N >= vocab_size)
    if outside.any():
        raise ProbeError(
            f"a token id in the probe {name} is outside the model's vocabulary",
            found=f"{int(ids_N[outside][0])} in line {row.line}; the vocabulary has {vocab_size:,}",
            hint="the probe was made for another model: build one from text",
        )
    if row.labels is not None:
        bad = (row.labels != -100) & ((row.labels < 0) | (row.labels >= vocab_size))
        if bad.any():
            raise ProbeError(
                f"a label in the probe {name} is outside the model's vocabulary",
                found=f"{int(row.labels[bad][0])} in line {row.line}",
                hint="-100 stands for no loss",
            )


def _pieces(sequence: Sequence, max_length: int | None) -> Iterator[Sequence]:
    """The sequence in pieces that fit the model's context."""
    size = len(sequence.input_ids)
    step = max_length or max(size, 1)
    for start in range(0, size, step):
        piece = slice(start, start + step)
        labels = None if sequence.labels is None else sequence.labels[piece]
        yield Sequence(sequence.input_ids[piece], labels, sequence.domain)
