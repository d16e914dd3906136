"""Load a probe: read the file (or the bundled one), tokenise it, check it against the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.probes.chat import Encode, open_chat
from moegeo_cli.probes.dataset import IGNORED_LABEL, Probe, Sample, Sequence, draw_balanced
from moegeo_cli.probes.forms.tensors import INPUTS
from moegeo_cli.probes.reading import read_file
from moegeo_cli.probes.rows import Header, ReadOptions, Row, Source, printable
from moegeo_cli.probes.tokenizing import (
    BYTE_LEVEL,
    BYTES,
    find_tokenizer,
    open_tokenizer,
    tokenizer_sha256,
)

BUNDLED = Path(__file__).parent / "data" / "default.jsonl"
REBUILD = "build it again from text: moegeo probe build TEXT --tokenizer CHECKPOINT"


@keeps_global_state
def load_probe(
    source: Source | Path | None,
    *,
    vocab_size: int | None,
    tokenizer_dir: Path,
    max_tokens: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
    accepts_samples: bool = False,
    ends: tuple[int, ...] = (),
) -> Probe:
    """Read, tokenise and check a probe.

    Args:
        source: a probe file and the keys of its records; None for the bundled one.
        vocab_size: vocabulary size of the model; None if unknown, then ids are not checked.
        tokenizer_dir: the checkpoint folder, for its tokenizer.
        max_tokens: largest number of tokens; whole sequences, balanced between domains.
        seed: seed of the draw if the file holds more tokens.
        max_length: the model's context length; longer sequences are cut into pieces.
        accepts_samples: whether the model takes other tensors than token ids.
        ends: the model's end-of-document ids, for files that hold one long stream of tokens.

    Returns:
        The sequences or samples that the model is shown.

    Raises:
        ProbeError: the file cannot be read, holds inputs that the model does not take, was made
            with another tokenizer, has ids outside the vocabulary, or holds no token.
        UsageError: `max_tokens` is less than 1.
    """
    source = Source.of(source)
    options = ReadOptions(source.text_key, source.domain_key, vocab_size, ends, max_length)
    file = read_file(source.path or BUNDLED, options)
    name = "bundled" if source.path is None else printable(source.path.name)
    if file.rows[0].inputs is not None:
        return _load_samples(file.rows, name, max_tokens, seed, taken=accepts_samples)
    check_header(file.header, name, vocab_size, tokenizer_dir)
    tokenizer = "ids"
    encode: Callable[[str], np.ndarray] | None = None
    if any(row.input_ids is None for row in file.rows):
        opened = open_tokenizer(tokenizer_dir, vocab_size)
        tokenizer, encode = opened.name, opened.encode
    chat = open_chat(tokenizer_dir) if any(row.chat is not None for row in file.rows) else None
    for row in file.rows:
        if row.input_ids is not None:
            check_vocabulary(row.input_ids, row.labels, row, name, vocab_size)

    def sequences_of(row: Row) -> Iterator[Sequence]:
        ids_N, labels_N = _encode(row, name, encode, chat)
        if row.input_ids is None:
            check_vocabulary(ids_N, labels_N, row, name, vocab_size)
        whole = Sequence(ids_N, labels_N, row.domain)
        step = max_length or max(len(ids_N), 1)
        for start in range(0, len(ids_N), step):
            yield whole.cut(start, start + step)

    documents = [(row.domain, sequences_of(row)) for row in file.rows]
    if max_tokens is None:
        sequences: list[Sequence | Sample] = [s for _, pieces in documents for s in pieces]
    else:
        sequences = draw_balanced(documents, max_tokens, seed)
    if not sequences:
        raise ProbeError(f"the probe {name} holds no token", hint="give text or input_ids")
    return replace(Probe.of(sequences, name, tokenizer), notes=file.notes)


def _encode(
    row: Row, name: str, encode: Callable[[str], np.ndarray] | None, chat: Encode | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids and labels of a row."""
    if row.input_ids is not None:
        labels_N = None if row.labels is None else row.labels.astype(np.int64)
        return row.input_ids.astype(np.int64), labels_N
    if row.chat is not None:
        assert chat is not None
        return chat(row.chat, f"row {row.line} of {name}")
    assert encode is not None
    return encode(row.text or ""), None


def _load_samples(
    rows: tuple[Row, ...], name: str, max_tokens: int | None, seed: int, *, taken: bool
) -> Probe:
    """All samples, or a balanced draw of at most `max_tokens` tokens."""
    if not taken:
        raise ProbeError(
            f"the probe {name} holds other inputs than token ids, which a language model needs",
            found=", ".join(sorted(rows[0].inputs or ()))[:200],
            hint=f"give {INPUTS}; or name your own model with --model",
        )
    for row in rows:  # the number of classes is known only once the model runs
        check_vocabulary(None, row.labels, row, name, None)
    found = [Sample(row.inputs or {}, row.positions, row.labels, row.domain) for row in rows]
    if max_tokens is None:
        return Probe.of(found, name, "inputs")
    drawn = draw_balanced([(sample.domain, (sample,)) for sample in found], max_tokens, seed)
    return Probe.of(drawn, name, "inputs")


def check_header(
    header: Header | None, name: str, vocab_size: int | None, tokenizer_dir: Path
) -> None:
    """Refuse a probe whose ids come from another tokenizer. A header without a tokenizer passes.

    Raises:
        ProbeError: another tokenizer; or another vocabulary size if the checkpoint has no
            tokenizer.
    """
    if header is None or header.tokenizer is None:
        return
    own = tokenizer_sha256(tokenizer_dir) if find_tokenizer(tokenizer_dir) else None
    if own is None and vocab_size == BYTES:
        own = BYTE_LEVEL
    if own is not None and own != header.tokenizer:
        raise ProbeError(
            f"the probe {name} was made with another tokenizer than the checkpoint's",
            found=f"{header.tokenizer[:12]} against {own[:12]}",
            hint=REBUILD,
        )
    if own is None and vocab_size and header.vocab_size not in (None, vocab_size):
        raise ProbeError(
            f"the probe {name} was made for another vocabulary than the checkpoint's",
            found=f"{header.vocab_size:,} ids against {vocab_size:,}",
            hint=REBUILD,
        )


def check_vocabulary(
    ids_N: np.ndarray | None, labels_N: np.ndarray | None, row: Row, name: str,
    vocab_size: int | None,
) -> None:  # fmt: skip
    """Refuse ids and labels outside the vocabulary; negative ids even if its size is unknown.

    Raises:
        ProbeError: it names the first such id, its line and the vocabulary size.
    """
    for values_N, kind, free in ((ids_N, "token id", None), (labels_N, "label", IGNORED_LABEL)):
        if values_N is None:
            continue
        outside = values_N < 0
        if vocab_size is not None:
            outside |= values_N >= vocab_size
        if free is not None:
            outside &= values_N != free
        if outside.any():
            size = "" if vocab_size is None else f"; the vocabulary has {vocab_size:,} ids, from 0"
            raise ProbeError(
                f"a {kind} in the probe {name} is outside the model's vocabulary",
                found=f"{int(values_N[outside].flat[0])} in line {row.line}{size}",
                hint="labels may be -100 for no loss" if free else REBUILD,
            )
