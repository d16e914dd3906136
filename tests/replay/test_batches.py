"""Sequences put into batches: each once, padded little, with the labels that they had."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.probes import Sample, Sequence
from moegeo_cli.replay.batches import (
    TOKENS_PER_BATCH,
    carries_state,
    count_losses,
    make_batches,
    next_token_targets,
    plan_batches,
)
from moegeo_cli.replay.pairs import align_logits, side_of, split_inputs
from moegeo_cli.replay.samples import as_batch, make_sample_batches
from moegeo_cli.replay.sharing import share_batches

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.one_of(st.none(), st.integers(1, 5)), st.booleans())
def test_every_sequence_is_in_one_batch_that_is_not_too_large(
    lengths: list[int], size: int | None, mixed: bool
) -> None:
    plan = plan_batches(lengths, size, mixed=mixed)
    assert sorted(s for batch in plan for s in batch) == list(range(len(lengths)))
    for batch in plan:
        own = [lengths[s] for s in batch]
        if size is None:
            assert len(batch) == 1 or len(batch) * max(own) <= TOKENS_PER_BATCH
        else:
            assert len(batch) <= size
        assert min(own) == max(own) or mixed
        assert sum(max(own) - n for n in own) * 8 <= len(own) * max(own), "an eighth is padding"


def test_a_number_of_tokens_takes_the_place_of_the_usual_one() -> None:
    assert [len(b) for b in plan_batches([10] * 7, None, tokens=30)] == [3, 3, 1]
    assert [len(b) for b in plan_batches([50], None, tokens=30)] == [1]


@settings(max_examples=30, deadline=None)
@given(LENGTHS)
def test_pairs_have_one_length_and_one_split_a_batch(lengths: list[int]) -> None:
    splits = [1 + n % 3 for n in lengths]
    for batch in plan_batches(lengths, None, splits=splits):
        assert len({(lengths[s], splits[s]) for s in batch}) == 1


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 5))
def test_ranks_share_all_batches_and_none_has_a_batch_too_many(
    lengths: list[int], ranks: int
) -> None:
    plan = plan_batches(lengths, 2)
    shares = share_batches(plan, lengths, ranks)
    assert sorted(itertools.chain(*shares)) == sorted(plan)
    assert shares[0] != []
    loads = [sum(lengths[s] for batch in own for s in batch) for own in shares]
    largest = max(sum(lengths[s] for s in batch) for batch in plan)
    assert max(loads) - min(loads) <= largest
    for own in shares:
        assert [plan.index(b) for b in own] == sorted(plan.index(b) for b in own), "in their order"


def test_positions_predict_the_next_tokens_label() -> None:
    ids, labels = np.array([5, 6, 7]), np.array([-100, 8, -100])
    assert next_token_targets(ids, None).tolist() == [6, 7, -100]
    assert next_token_targets(ids, labels).tolist() == [8, -100, -100]
    sequences = [Sequence(ids), Sequence(ids, labels), Sequence(ids[:1])]
    counted = count_losses([s.input_ids for s in sequences], [s.labels for s in sequences])
    assert counted.tolist() == [s.loss_tokens for s in sequences] == [2, 1, 0]
    samples = [Sample({}, 4, np.array([1, -100])), Sample({}, 4)]
    assert count_losses(samples, [s.labels for s in samples]).tolist() == [1, 0]


def test_padding_is_masked_and_has_no_label() -> None:
    ids = [np.array([1, 2, 3]), np.array([4, 5]), np.array([6, 7])]
    padded, whole = make_batches(ids, [None] * 3, [[0, 1], [2]], CPU)
    assert padded.input_ids_BN.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert padded.mask_BN is not None
    assert padded.mask_BN.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert padded.targets_BN.tolist() == [[2, 3, -100], [5, -100, -100]]
    assert padded.flat is not None
    assert padded.flat.tolist() == [0, 1, 2, 3, 4]
    assert (padded.tokens, padded.positions) == (5, 6)
    assert set(padded.inputs) == {"input_ids", "attention_mask"}
    assert (whole.mask_BN, whole.flat, set(whole.inputs)) == (None, None, {"input_ids"})
    assert whole.sequence_B.tolist() == [2]


def test_layers_that_carry_a_state_are_seen_and_towers_are_not_looked_at() -> None:
    assert not carries_state(nn.Sequential(nn.Linear(2, 2)))
    assert carries_state(nn.Sequential(nn.Conv1d(1, 1, 2)))
    assert carries_state(nn.ModuleDict({"mixer": type("Mamba2Mixer", (nn.Module,), {})()}))
    tower = nn.ModuleDict({"patches": nn.Conv1d(1, 1, 2)})
    assert not carries_state(nn.ModuleDict({"vision_tower": tower}))


def test_samples_of_one_form_lie_together_in_the_models_dtype() -> None:
    def sample(width: int, label: int | None, positions: int = 3) -> Sample:
        inputs = {"x": np.full((2, width), float(width)), "n": np.array([width])}
        return Sample(inputs, positions, None if label is None else np.array(label))

    samples = [sample(4, 1), sample(5, 0), sample(4, 2, 7), sample(4, None)]
    found = list(make_sample_batches(samples, [[0, 1, 2, 3]], CPU, torch.bfloat16))
    assert [b.sequence_B.tolist() for b in found] == [[0, 2], [1], [3]]
    first, _, bare = found
    assert first.inputs["x"].shape == (2, 2, 4)
    assert (first.inputs["x"].dtype, first.inputs["n"].dtype) == (torch.bfloat16, torch.int64)
    assert first.targets is not None
    assert first.targets.tolist() == [1, 2]
    assert (first.tokens, first.positions, bare.targets) == (10, 10, None)
    assert as_batch(np.array([3, 4]), CPU, torch.float32)["input_ids"].tolist() == [[3, 4]]
    one = as_batch(samples[0], CPU, torch.float16)
    assert (one["x"].shape, one["x"].dtype) == ((1, 2, 4), torch.float16)


class Seq2Seq(nn.Module):
    def __init__(self, start: int | None = 9) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
        self.config = type("Config", (), {"decoder_start_token_id": start})()

    def get_encoder(self) -> nn.Module:
        return self.encoder


def test_a_router_is_on_the_side_that_holds_it() -> None:
    model = Seq2Seq()
    assert side_of(model, model.encoder[0]) == "source"
    assert side_of(model, model.decoder) == "target"
    with pytest.raises(UnsupportedArchitectureError, match="which of its parts is the encoder"):
        side_of(nn.Linear(2, 2), nn.Linear(2, 2))


def test_a_decoder_is_given_a_start_and_the_target_without_its_last() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    found = split_inputs(Seq2Seq(0), ids, 2)
    assert found["input_ids"].tolist() == [[1, 2], [6, 7]]
    assert found["decoder_input_ids"].tolist() == [[0, 3, 4], [0, 8, 9]], "0 is a start token, too"
    with pytest.raises(UnsupportedArchitectureError, match="which token a decoder starts with"):
        split_inputs(Seq2Seq(None), ids, 2)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_logits_stand_before_the_token_that_they_predict(split: int) -> None:
    length, vocabulary = 5, 3
    logits = torch.arange(1.0, 2 * (length - split) * vocabulary + 1).reshape(2, -1, vocabulary)
    found = align_logits(logits, split, length)
    assert found.shape == (2, length, vocabulary)
    for position in range(length):
        predicted = position + 1 - split  # the decoder's output for token position + 1
        expected = logits[:, predicted] if 0 <= predicted < length - split else 0 * logits[:, 0]
        assert torch.equal(found[:, position], expected)
