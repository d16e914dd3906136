"""A probe as frozen data: sequences of token ids, their labels and domains.

Legend: N tokens of a sequence.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence. `labels` stand at the positions of their own tokens, −100 for no loss.

    Without labels every token but the first is predicted.
    """

    input_ids: np.ndarray  # (N,), int64
    labels: np.ndarray | None = None
    domain: str | None = None

    @property
    def loss_tokens(self) -> int:
        """How many next-token losses it has."""
        if self.labels is None:
            return max(len(self.input_ids) - 1, 0)
        return int((self.labels[1:] != IGNORED_LABEL).sum())


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe dataset, tokenised.

    `name` is what a person calls it, never a path of one machine; `tokenizer` says where the
    ids come from: "ids" (from the file), "bytes", or the tokenizer's hash.
    """

    name: str
    sequences: tuple[Sequence, ...]
    sha256: str
    tokenizer: str = "ids"

    @classmethod
    def of(cls, sequences: Iterable[Sequence], name: str, tokenizer: str = "ids") -> Probe:
        """A probe of these sequences, with the hash of their content."""
        found = tuple(sequences)
        return cls(name, found, _digest(found), tokenizer)

    @property
    def tokens(self) -> int:
        """All tokens of all sequences."""
        return sum(len(s.input_ids) for s in self.sequences)

    @property
    def loss_tokens(self) -> int:
        """All next-token losses of all sequences."""
        return sum(s.loss_tokens for s in self.sequences)

    @property
    def domains(self) -> dict[str, int]:
        """How many sequences each named domain has."""
        return dict(sorted(Counter(s.domain for s in self.sequences if s.domain).items()))

    def describe(self) -> dict[str, Any]:
        """What a result says of its probe."""
        return {
            "source": self.name,
            "sha256": self.sha256,
            "sequences": len(self.sequences),
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "domains": self.domains,
            "tokenizer": self.tokenizer,
        }

    def take(self, max_tokens: int) -> Probe:
        """At most so many tokens, by whole sequences, taking turns between the domains.

        Sequences keep their order. A first sequence that is too long by itself is cut.
        """
        if self.tokens <= max_tokens:
            return self
        turns: Counter[str | None] = Counter()
        ranked = []
        for place, sequence in enumerate(self.sequences):
            ranked.append((turns[sequence.domain], place))
            turns[sequence.domain] += 1
        chosen, left = [], max_tokens
        for _, place in sorted(ranked):
            size = len(self.sequences[place].input_ids)
            if size > left:
                break
            chosen.append(place)
            left -= size
        if not chosen:
            first = self.sequences[0]
            labels = None if first.labels is None else first.labels[:max_tokens]
            cut = replace(first, input_ids=first.input_ids[:max_tokens], labels=labels)
            return Probe.of([cut], self.name, self.tokenizer)
        return Probe.of([self.sequences[p] for p in sorted(chosen)], self.name, self.tokenizer)


def _digest(sequences: tuple[Sequence, ...]) -> str:
    """Hash of ids, labels and domains: the same content has the same hash, whatever its file."""
    digest = hashlib.sha256()
    for sequence in sequences:
        for array in (sequence.input_ids, sequence.labels):
            digest.update(b"none" if array is None else np.int64(len(array)).tobytes())
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        digest.update(repr(sequence.domain).encode())
    return digest.hexdigest()
