"""A loaded probe: sequences of token ids with their labels and domains, ready to be replayed.

Legend: N tokens of a sequence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moegeo_cli.errors import UsageError
from moegeo_cli.records.facts import ProbeFacts

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence of token ids.

    `labels`, shape (N,), are aligned with `input_ids` (not shifted); −100 means no loss. Without
    labels every token but the first is predicted.
    """

    input_ids: np.ndarray  # (N,), int64
    labels: np.ndarray | None = None
    domain: str | None = None

    @property
    def tokens(self) -> int:
        """Number of positions."""
        return len(self.input_ids)

    @property
    def loss_tokens(self) -> int:
        """Number of next-token losses."""
        if self.labels is None:
            return max(len(self.input_ids) - 1, 0)
        return int((self.labels[1:] != IGNORED_LABEL).sum())

    @property
    def source(self) -> int:
        """Number of tokens that an encoder reads, at least 1.

        With labels: the tokens before the first label. Without: half of the tokens, rounded up.
        """
        if self.labels is not None and (self.labels != IGNORED_LABEL).any():
            return max(1, int(np.argmax(self.labels != IGNORED_LABEL)))
        return (len(self.input_ids) + 1) // 2

    def as_pair(self) -> Sequence:
        """The sequence with labels on the tokens after the source only; unchanged if labelled."""
        if self.labels is not None:
            return self
        labels = self.input_ids.copy()
        labels[: self.source] = IGNORED_LABEL
        return Sequence(self.input_ids, labels, self.domain)

    def cut(self, start: int, end: int) -> Sequence:
        """The tokens from `start` up to `end`, with their labels."""
        labels = None if self.labels is None else self.labels[start:end]
        return Sequence(self.input_ids[start:end], labels, self.domain)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample for a model that takes other tensors than token ids, for example an image.

    `inputs` are the tensors that the model is called with, by name, without their batch axis.
    `labels` are one number per sample or one per position, aligned with the model's outputs
    (not shifted); −100 means no loss. `positions` is the number of tokens that a router sees.
    """

    inputs: Mapping[str, np.ndarray]
    positions: int
    labels: np.ndarray | None = None
    domain: str | None = None

    def __len__(self) -> int:
        return self.positions

    @property
    def tokens(self) -> int:
        """Number of positions that a router sees."""
        return self.positions

    @property
    def loss_tokens(self) -> int:
        """Number of losses."""
        return 0 if self.labels is None else int((self.labels != IGNORED_LABEL).sum())

    def cut(self, start: int, end: int) -> Sample:
        """Refuse to cut: a sample is replayed whole or not at all.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "not even one sample of the probe fits",
            found=f"{end:,} tokens against {self.positions:,} positions a sample",
            hint="raise --max-tokens",
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """A tokenised probe dataset.

    `name` is a file name or "bundled", never a full path; `tokenizer` says where the ids come
    from: "ids" (from the file), "bytes", or the tokenizer's hash. `notes` are sentences for the
    report about how the file was read.
    """

    name: str
    sequences: tuple[Sequence | Sample, ...]
    sha256: str
    tokenizer: str = "ids"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, sequences: Iterable[Sequence | Sample], name: str, tokenizer: str = "ids") -> Probe:
        """Build a probe from sequences; its `sha256` is the hash of their content."""
        found = tuple(sequences)
        return cls(name, found, _digest(found), tokenizer)

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences together."""
        return sum(s.tokens for s in self.sequences)

    @property
    def loss_tokens(self) -> int:
        """Number of losses of all sequences together."""
        return sum(s.loss_tokens for s in self.sequences)

    @property
    def domains(self) -> dict[str, int]:
        """Number of sequences of each named domain."""
        return dict(sorted(Counter(s.domain for s in self.sequences if s.domain).items()))

    @property
    def domain_tokens(self) -> dict[str, int]:
        """Number of tokens of each named domain."""
        found: Counter[str] = Counter()
        for sequence in self.sequences:
            if sequence.domain:
                found[sequence.domain] += sequence.tokens
        return dict(sorted(found.items()))

    @property
    def lengths(self) -> dict[str, int]:
        """The shortest, the median and the longest sequence, in tokens."""
        return summarize_lengths(s.tokens for s in self.sequences)

    def describe(self) -> ProbeFacts:
        """The facts about the probe that are stored with a result."""
        return {
            "source": self.name,
            "sha256": self.sha256,
            "sequences": len(self.sequences),
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "domains": self.domains,
            "tokenizer": self.tokenizer,
        }

    def as_pairs(self) -> Probe:
        """The probe split into source and target tokens, for an encoder-decoder model."""
        pairs = (s.as_pair() if isinstance(s, Sequence) else s for s in self.sequences)
        return replace(Probe.of(pairs, self.name, self.tokenizer), notes=self.notes)

    def take(self, max_tokens: int, seed: int = 0) -> Probe:
        """A probe of at most `max_tokens` tokens: whole sequences, balanced between domains.

        The seed decides which sequences are drawn; they keep their order. A larger `max_tokens`
        adds sequences to the same draw. If no sequence fits whole, one is cut.

        Raises:
            UsageError: `max_tokens` is less than 1.
        """
        if 0 < self.tokens <= max_tokens:
            return self
        documents = [(s.domain, (s,)) for s in self.sequences]
        drawn = draw_balanced(documents, max_tokens, seed)
        return replace(Probe.of(drawn, self.name, self.tokenizer), notes=self.notes)


def summarize_lengths(sizes: Iterable[int]) -> dict[str, int]:
    """Shortest, lower median and longest of some lengths."""
    found = sorted(sizes)
    return {"shortest": found[0], "median": found[(len(found) - 1) // 2], "longest": found[-1]}


def draw_balanced(
    documents: Iterable[tuple[str | None, Iterable[Sequence | Sample]]], max_tokens: int, seed: int
) -> list[Sequence | Sample]:
    """Draw whole sequences so that every domain gets as many tokens as the others.

    The next sequence comes from the domain with the fewest tokens so far. A domain is finished
    when it has no further sequence or its next one does not fit. Later sequences are not
    tokenised. If no sequence fits at all, the first one is cut.

    Args:
        documents: the domain of each document, and its sequences.
        max_tokens: largest number of tokens.
        seed: seed of the order of documents within a domain.

    Returns:
        The drawn sequences, in the order of `documents`.

    Raises:
        UsageError: `max_tokens` is less than 1.
    """
    if max_tokens < 1:
        raise UsageError("at least one probe token is needed", found=f"max_tokens {max_tokens}")
    columns: dict[str | None, list[tuple[int, Iterable[Sequence | Sample]]]] = {}
    for place, (domain, pieces) in enumerate(documents):
        columns.setdefault(domain, []).append((place, pieces))
    generator = np.random.default_rng(seed)
    waiting = {
        domain: _in_order([column[i] for i in generator.permutation(len(column))])
        for domain, column in columns.items()
    }
    taken = dict.fromkeys(waiting, 0)
    chosen: list[tuple[int, int, Sequence | Sample]] = []
    too_long: Sequence | Sample | None = None
    while waiting:
        domain = min(waiting, key=lambda d: taken[d])
        found = next(waiting[domain], None)
        size = found[2].tokens if found else 0
        if found is None or size > max_tokens - sum(taken.values()):
            del waiting[domain]
            too_long = too_long or (found[2] if found else None)
            continue
        chosen.append(found)
        taken[domain] += size
    if not chosen and too_long is not None:
        return [too_long.cut(0, max_tokens)]
    return [s for _, _, s in sorted(chosen, key=lambda c: c[:2])]


def _in_order(
    column: list[tuple[int, Iterable[Sequence | Sample]]],
) -> Iterator[tuple[int, int, Sequence | Sample]]:
    for place, pieces in column:
        for number, sequence in enumerate(pieces):
            yield place, number, sequence


def _digest(sequences: tuple[Sequence | Sample, ...]) -> str:
    """Hash of ids, labels and domains. It does not depend on the file format."""
    digest = hashlib.sha256()
    for sequence in sequences:
        arrays = [sequence.labels]
        if isinstance(sequence, Sample):
            _feed_inputs(digest, sequence)
        else:
            arrays.insert(0, sequence.input_ids)
        for array in arrays:
            digest.update(b"none" if array is None else np.int64(array.size).tobytes())
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        digest.update(repr(sequence.domain).encode())
    return digest.hexdigest()


def _feed_inputs(digest: hashlib._Hash, sample: Sample) -> None:
    for name, array in sorted(sample.inputs.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} {sample.positions} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
