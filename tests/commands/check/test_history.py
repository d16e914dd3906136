"""A run of digests: what stayed, moved and came back, against loops over earlier checkpoints."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from tests.commands.check.recorded import layer_of, past_of, sums_of

ROUTER = ("router", "model.layers.0.mlp.gate")


def run_of(digests: str) -> list[CheckpointSums]:
    return [sums_of(layer_of(digest=d)) for d in digests]


@settings(max_examples=30, deadline=None)
@given(st.text("abc", min_size=1, max_size=7))
def test_since_moved_and_back_are_told_from_what_came_before(digests: str) -> None:
    past = past_of(*run_of(digests))
    last = len(digests) - 1
    start = last
    while start > 0 and digests[start - 1] == digests[last]:
        start -= 1
    since, back = past.since(ROUTER), past.back(ROUTER)
    assert since is None if start == last else since == past.history.entries[start]
    earlier = [place for place in range(start) if digests[place] == digests[last]]
    assert back is None if not earlier else back == past.history.entries[earlier[-1]]
    assert (ROUTER in past.moved) == (last > 0 and digests[last] != digests[last - 1])
    copy = digests.index(digests[last])
    assert past.copy_of is None if copy == last else past.copy_of == past.history.entries[copy]


def test_what_was_not_read_neither_moves_nor_stays() -> None:
    bare = layer_of(digest="b", expert_digests=None)
    past = past_of(sums_of(layer_of(digest="a")), sums_of(bare), sums_of(layer_of(digest="c")))
    expert = ("expert", "model.layers.0.mlp.gate", 1)
    assert expert not in past.moved
    assert past.since(expert) is None
    assert ROUTER in past.moved


def test_a_new_thing_has_no_past() -> None:
    past = past_of(sums_of(layer_of(0)), sums_of(layer_of(0), layer_of(1)))
    new = ("router", "model.layers.1.mlp.gate")
    assert past.since(new) is None
    assert past.back(new) is None
    assert new not in past.moved
    assert past.since(("router", "nowhere")) is None
