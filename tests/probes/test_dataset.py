"""Hashes, cutting, and balanced draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.errors import UsageError
from moegeo_cli.probes import Probe, Sequence

Lines = Callable[..., Path]
Load = Callable[..., Probe]


def make(lengths: list[int], domains: list[str | None]) -> Probe:
    """Sequences whose every id is their place."""
    return Probe.of(
        (
            Sequence(np.full(n, i), None, d)
            for i, (n, d) in enumerate(zip(lengths, domains, strict=True))
        ),
        "made",
    )


def places(probe: Probe) -> list[int]:
    return [int(s.input_ids[0]) for s in probe.sequences]


PROBES = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=40
)


@settings(max_examples=200, deadline=None)
@given(PROBES, st.integers(1, 400), st.integers(0, 3))
def test_a_draw_is_whole_ordered_within_budget_and_repeatable(
    rows: list[tuple[int, str | None]], budget: int, seed: int
) -> None:
    probe = make([n for n, _ in rows], [d for _, d in rows])
    taken = probe.take(budget, seed)
    assert 1 <= taken.tokens <= budget or probe.tokens <= budget
    assert places(taken) == sorted(set(places(taken)))
    if len(taken.sequences) > 1:
        assert all(len(s.input_ids) == rows[int(s.input_ids[0])][0] for s in taken.sequences)
    assert taken.sha256 == probe.take(budget, seed).sha256
    assert (taken is probe) == (probe.tokens <= budget)


@settings(max_examples=100, deadline=None)
@given(PROBES, st.integers(1, 200))
def test_domains_stay_close_while_all_have_more(
    rows: list[tuple[int, str | None]], budget: int
) -> None:
    probe = make([n for n, _ in rows] * 200, [d for _, d in rows] * 200)
    taken: Counter[str | None] = Counter({d: 0 for _, d in rows})
    for s in probe.take(budget).sequences:
        taken[s.domain] += len(s.input_ids)
    # one sequence, and what was left when another domain's next one no longer fitted
    assert max(taken.values()) - min(taken.values()) < 2 * 40


def test_unsorted_domains_are_balanced_by_tokens() -> None:
    probe = make([10] * 500 + [50] * 100, ["short"] * 500 + ["long"] * 100)
    taken = probe.take(1000)
    assert taken.domain_tokens == {"long": 500, "short": 500}
    assert taken.domains == {"long": 10, "short": 50}


def test_a_draw_comes_from_everywhere_and_grows() -> None:
    probe = make([10] * 1000, [None] * 1000)
    small, large = places(probe.take(1000)), places(probe.take(5000))
    assert set(small) < set(large)
    assert min(small) < 100
    assert max(small) > 900
    assert places(probe.take(1000, seed=1)) != small


def test_a_sequence_longer_than_the_budget_is_cut() -> None:
    labels = np.arange(100)
    probe = Probe.of([Sequence(np.arange(100), labels, "a")], "made")
    taken = probe.take(30)
    assert taken.sequences[0].input_ids.tolist() == list(range(30))
    assert taken.sequences[0].labels is not None
    assert len(taken.sequences[0].labels) == 30
    other = make([100, 5], [None, None])
    assert places(other.take(30)) in ([0], [1])


@pytest.mark.parametrize("budget", [0, -5])
def test_no_token_cannot_be_asked_for(budget: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        make([3, 4], [None, None]).take(budget)


def test_the_hash_is_of_content_alone(lines: Lines, load: Load) -> None:
    row = {"input_ids": [1, 2, 3], "domain": "a"}
    one = load(lines(row, name="one.jsonl")).sha256
    assert (
        one == load(lines({"domain": "a", "input_ids": [1, 2, 3], "x": 1}, name="b.jsonl")).sha256
    )
    for other in (
        {"input_ids": [1, 2, 4], "domain": "a"},
        {"input_ids": [1, 2, 3], "domain": "b"},
        {"input_ids": [1, 2, 3]},
        {**row, "labels": [1, 2, 3]},
    ):
        assert load(lines(other)).sha256 != one
    two = load(lines({"input_ids": [1, 2], "domain": "a"}, {"input_ids": [3], "domain": "a"}))
    assert two.sha256 != one


def test_long_sequences_are_cut_to_the_context(lines: Lines, load: Load) -> None:
    ids, labels = list(range(10)), [-100] * 5 + list(range(5, 10))
    probe = load(lines({"input_ids": ids, "labels": labels}), max_length=4)
    assert [s.input_ids.tolist() for s in probe.sequences] == [ids[:4], ids[4:8], ids[8:]]
    assert [s.loss_tokens for s in probe.sequences] == [0, 3, 1]
    alone = load(lines({"input_ids": ids[:9]}), max_length=4)
    assert [s.loss_tokens for s in alone.sequences] == [3, 3, 0]


def test_loading_draws_like_the_probe_itself(lines: Lines, load: Load) -> None:
    path = lines(*({"text": "w" * (1 + i % 7), "domain": "ab"[i % 2]} for i in range(90)))
    assert load(path, max_tokens=100).sha256 == load(path).take(100).sha256
    assert load(path, max_tokens=100, seed=4).sha256 == load(path).take(100, 4).sha256
    assert load(path, max_tokens=10**6).sha256 == load(path).sha256


def test_text_that_is_not_drawn_is_not_tokenised(
    lines: Lines, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moegeo_cli.probes import tokenizing

    seen: list[str] = []
    encode = tokenizing._bytes
    monkeypatch.setattr(tokenizing, "_bytes", lambda text: (seen.append(text), encode(text))[1])
    load(lines(*({"text": "word"} for _ in range(1000))), max_tokens=40)
    assert len(seen) <= 12


def test_a_bad_id_is_found_wherever_it_is(lines: Lines, load: Load) -> None:
    rows = [{"input_ids": [1, 2]} for _ in range(500)]
    from moegeo_cli.errors import ProbeError

    with pytest.raises(ProbeError, match="line 501"):
        load(lines(*rows, {"input_ids": [1, 999]}), max_tokens=4)
