"""The history of a run: which tensors stayed, moved, or went back to earlier bytes.

Everything here compares digests of stored bytes. Statements about a checkpoint depend only on it
and on earlier checkpoints, so each checkpoint can be judged with its own past.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.verdict.thresholds import Thresholds

# One part of a checkpoint that is followed through a run: ("router", path), ("bias", path),
# ("expert", path, 3) or ("other", tensor).
Item = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint of a run: its step, its path in the run, and its sums."""

    step: int | None
    path: str
    sums: CheckpointSums

    @property
    def name(self) -> str:
        """The checkpoint's name in messages."""
        return self.path if self.step is None else f"step {self.step}"


@dataclass(frozen=True, slots=True)
class Track:
    """The digests of one item (a router, an expert, a tensor) at each checkpoint, oldest first.

    All three lists have one entry per checkpoint. Checkpoints are given by their position.

    Attributes:
        digests: digest of the item's bytes; None if it was not read.
        since: the first checkpoint of the unbroken stretch with the same bytes.
        back: the latest checkpoint before that stretch that had the same bytes; None for none.
    """

    digests: list[str | None] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    back: list[int | None] = field(default_factory=list)


class RunHistory:
    """All checkpoints of a run, with the track of every item in them."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    @cached_property
    def tracks(self) -> Mapping[Item, Track]:
        """The track of every item."""
        digests: dict[Item, list[str | None]] = {}
        for place, entry in enumerate(self.entries):
            for item, digest in items_of(entry.sums):
                item_digests = digests.setdefault(item, [])
                item_digests += [None] * (place - len(item_digests))
                item_digests.append(digest)
        count = len(self.entries)
        return {
            item: _follow(found + [None] * (count - len(found))) for item, found in digests.items()
        }

    @cached_property
    def moved(self) -> list[frozenset[Item]]:
        """For each checkpoint, the items that differ from the previous checkpoint."""
        found: list[set[Item]] = [set() for _ in self.entries]
        for item, track in self.tracks.items():
            for place in range(1, len(self.entries)):
                before, now = track.digests[place - 1], track.digests[place]
                if before is not None and now is not None and before != now:
                    found[place].add(item)
        return [frozenset(items) for items in found]

    @cached_property
    def copies(self) -> list[int | None]:
        """For each checkpoint, the position of an earlier one with the same bytes; else None."""
        seen: dict[str, int] = {}
        found: list[int | None] = []
        for place, entry in enumerate(self.entries):
            digest = hashlib.sha256(
                repr(sorted(items_of(entry.sums), key=repr)).encode()
            ).hexdigest()
            found.append(seen.get(digest))
            seen.setdefault(digest, place)
        return found


@dataclass(frozen=True, slots=True)
class Past:
    """A checkpoint with its past: the one at position `place` of its run, and all earlier ones."""

    history: RunHistory
    place: int
    limits: Thresholds

    @property
    def now(self) -> Entry:
        """The checkpoint that is judged."""
        return self.history.entries[self.place]

    @property
    def layers(self) -> tuple[LayerSums, ...]:
        """The layers of the checkpoint that is judged."""
        return self.now.sums.layers

    @property
    def is_first(self) -> bool:
        """Whether it is the oldest checkpoint of the run."""
        return self.place == 0

    @property
    def copy_of(self) -> Entry | None:
        """An earlier checkpoint with the same bytes; None if there is none."""
        place = self.history.copies[self.place]
        return None if place is None else self.history.entries[place]

    @property
    def moved(self) -> frozenset[Item]:
        """The items that differ from the previous checkpoint."""
        return self.history.moved[self.place]

    def since(self, item: Item) -> Entry | None:
        """The checkpoint since which an item has the same bytes; None if it moved or is new."""
        track = self.history.tracks.get(item)
        if track is None or track.digests[self.place] is None:
            return None
        place = track.since[self.place]
        return None if place == self.place else self.history.entries[place]

    def back(self, item: Item) -> Entry | None:
        """The earlier checkpoint whose bytes an item has again after it had moved; else None."""
        track = self.history.tracks.get(item)
        place = None if track is None else track.back[self.place]
        return None if place is None else self.history.entries[place]


def items_of(sums: CheckpointSums) -> Iterator[tuple[Item, str]]:
    """Every item of a checkpoint that has a digest, with the digest."""
    for layer in sums.layers:
        yield ("router", layer.router), layer.router_digest
        if layer.bias_digest is not None:
            yield ("bias", layer.router), layer.bias_digest
        for expert, digest in enumerate(layer.expert_digests or ()):
            if digest:
                yield ("expert", layer.router, expert), digest
    for name, (_, _, digest) in sums.rest.items():
        yield ("other", name), digest


def _follow(digests: list[str | None]) -> Track:
    track = Track(digests)
    ended: dict[str, int] = {}  # digest -> the last checkpoint of an earlier stretch that had it
    for place, digest in enumerate(digests):
        before = digests[place - 1] if place else None
        if place and digest is not None and digest == before:
            track.since.append(track.since[-1])
            track.back.append(track.back[-1])
            continue
        if before is not None and digest is not None:
            ended[before] = place - 1
        track.since.append(place)
        track.back.append(None if digest is None else ended.get(digest))
    return track
