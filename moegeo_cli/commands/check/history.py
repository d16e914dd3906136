"""The history of a run: which tensors stayed, moved, or went back to earlier bytes.

Everything is told from digests of the stored bytes. What is said of a checkpoint depends on
earlier ones alone, so each can be judged with its own past.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.verdict.thresholds import Thresholds

# One thing that is followed through a run: ("router", path), ("bias", path), ("expert", path, 3),
# ("other", tensor).
Thing = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint of a run: its step, its path in the run, and what is kept of it."""

    step: int | None
    path: str
    sums: CheckpointSums

    @property
    def name(self) -> str:
        """The checkpoint's name in messages."""
        return self.path if self.step is None else f"step {self.step}"


@dataclass(frozen=True, slots=True)
class Track:
    """The digests of one thing (a router, an expert, a tensor) at each checkpoint, oldest first.

    Attributes:
        digests: of its bytes; None where it was not read.
        since: the first checkpoint from which on it has been equal up to this one.
        back: the latest checkpoint before `since` that had the same bytes; None if there is none.
    """

    digests: list[str | None] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    back: list[int | None] = field(default_factory=list)


class Story:
    """All checkpoints of a run, with the tracks of everything in them."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    @cached_property
    def tracks(self) -> Mapping[Thing, Track]:
        """For every thing: its digests, since when each holds, and when it held before."""
        digests: dict[Thing, list[str | None]] = {}
        for place, entry in enumerate(self.entries):
            for thing, digest in things(entry.sums):
                held = digests.setdefault(thing, [])
                held += [None] * (place - len(held))
                held.append(digest)
        count = len(self.entries)
        return {
            thing: _follow(held + [None] * (count - len(held))) for thing, held in digests.items()
        }

    @cached_property
    def moved(self) -> list[frozenset[Thing]]:
        """At each checkpoint, what differs from the one before."""
        found: list[set[Thing]] = [set() for _ in self.entries]
        for thing, track in self.tracks.items():
            for place in range(1, len(self.entries)):
                before, now = track.digests[place - 1], track.digests[place]
                if before is not None and now is not None and before != now:
                    found[place].add(thing)
        return [frozenset(held) for held in found]

    @cached_property
    def copies(self) -> list[int | None]:
        """At each checkpoint, the earlier one that it equals in every byte; None if none."""
        seen: dict[str, int] = {}
        found: list[int | None] = []
        for place, entry in enumerate(self.entries):
            digest = hashlib.sha256(repr(sorted(things(entry.sums), key=repr)).encode()).hexdigest()
            found.append(seen.get(digest))
            seen.setdefault(digest, place)
        return found


@dataclass(frozen=True, slots=True)
class Past:
    """A checkpoint, the one at `place` in its run, with all earlier ones."""

    story: Story
    place: int
    limits: Thresholds

    @property
    def now(self) -> Entry:
        """The checkpoint that is judged."""
        return self.story.entries[self.place]

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
        """An earlier checkpoint that has the same bytes; None if there is none."""
        place = self.story.copies[self.place]
        return None if place is None else self.story.entries[place]

    @property
    def moved(self) -> frozenset[Thing]:
        """What differs from the checkpoint before."""
        return self.story.moved[self.place]

    def since(self, thing: Thing) -> Entry | None:
        """The checkpoint since which a thing has been equal. None if it moved or is new."""
        track = self.story.tracks.get(thing)
        if track is None or track.digests[self.place] is None:
            return None
        place = track.since[self.place]
        return None if place == self.place else self.story.entries[place]

    def back(self, thing: Thing) -> Entry | None:
        """The earlier checkpoint whose bytes a thing has again after it had moved."""
        track = self.story.tracks.get(thing)
        place = None if track is None else track.back[self.place]
        return None if place is None else self.story.entries[place]


def things(sums: CheckpointSums) -> Iterator[tuple[Thing, str]]:
    """Everything in a checkpoint that has a digest."""
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
