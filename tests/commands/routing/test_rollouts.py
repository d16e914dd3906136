"""Where a prompt ends, and which prompts a model continues."""

from __future__ import annotations

import numpy as np

from moegeo_cli.commands.routing.rollouts import MAX_PROMPTS, choose_prompts, prompt_tokens
from moegeo_cli.probes import Probe, Sample, Sequence
from moegeo_cli.probes.dataset import IGNORED_LABEL
from tests.commands.routing.recorded import tokens_of
from tests.traces import LENGTHS, architecture_of, probe_of

ARCHITECTURE = architecture_of()


def labelled(first: int, length: int) -> Sequence:
    ids = np.arange(length)
    return Sequence(ids, np.where(ids < first, IGNORED_LABEL, ids))


def flags(*firsts: int) -> list[bool]:
    return [p < first for first, n in zip(firsts, LENGTHS, strict=True) for p in range(n)]


def test_without_labels_a_prompt_is_the_first_half() -> None:
    found = prompt_tokens(tokens_of(), probe_of(), ARCHITECTURE)
    assert list(found) == flags(*((n + 1) // 2 for n in LENGTHS))


def test_with_labels_a_prompt_ends_before_the_first() -> None:
    firsts = (1, 4, 2, 11, 3, 5)
    probe = Probe.of((labelled(f, n) for f, n in zip(firsts, LENGTHS, strict=True)), "labelled")
    assert list(prompt_tokens(tokens_of(), probe, ARCHITECTURE)) == flags(*firsts)


def test_one_side_of_two_is_halved_whatever_the_labels() -> None:
    probe = Probe.of((labelled(1, n) for n in LENGTHS), "pairs")
    found = prompt_tokens(tokens_of(), probe, architecture_of(encoder_decoder=True))
    assert list(found) == flags(*((n + 1) // 2 for n in LENGTHS))


def test_samples_have_no_prompt_but_captured_inputs_have() -> None:
    samples = [Sample({"x": np.zeros(n)}, n) for n in LENGTHS]
    reason = prompt_tokens(tokens_of(), Probe.of(samples, "images"), ARCHITECTURE)
    assert reason == "samples that are not token ids have no continuation"
    captured = Probe.of(samples, "captured", tokenizer="captured")
    halves = prompt_tokens(tokens_of(), captured, ARCHITECTURE)
    assert list(halves) == flags(*((n + 1) // 2 for n in LENGTHS))


def test_prompts_leave_room_for_what_is_generated() -> None:
    probe = probe_of()
    assert choose_prompts(probe, 4, None) == list(probe.sequences)
    fitting = choose_prompts(probe, 4, 8)  # sources of 4 tokens at most
    assert [s.tokens for s in fitting] == [5, 3, 7, 6]
    assert choose_prompts(probe, 8, 8) == []


def test_of_many_prompts_some_are_taken_evenly() -> None:
    probe = Probe.of((Sequence(np.full(4, i)) for i in range(1000)), "many")
    found = choose_prompts(probe, 1, None)
    numbers = [int(s.input_ids[0]) for s in found]
    assert len(numbers) == MAX_PROMPTS
    assert (numbers[0], numbers[-1]) == (0, 999)
    assert set(np.diff(numbers)) <= {15, 16}


def test_empty_sequences_and_samples_are_no_prompts() -> None:
    probe = Probe.of([Sequence(np.zeros(0, dtype=np.int64)), Sample({}, 3)], "none")
    assert choose_prompts(probe, 1, None) == []
