"""What a config says of a probe, and which versions measured: small functions of plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moegeo_cli.errors import UsageError
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.probe import (
    MINIMUM_TOKENS,
    context_length,
    document_ends,
    vocabulary_size,
)
from moegeo_cli.measuring.provenance import measured_versions, running_versions
from moegeo_cli.replay.inputs import KeptInputs
from moegeo_cli.replay.plan import BatchRows, Plan
from tests.traces import LENGTHS, WIDTH, trace_of
from tests.verdict.conftest import checkpoint


@pytest.mark.parametrize(
    ("config", "vocabulary", "context", "ends"),
    [
        ({"vocab_size": 9, "max_position_embeddings": 64, "eos_token_id": 2}, 9, 64, (2,)),
        ({"vocab_size": 9, "eos_token_id": [5, 2, 5]}, 9, None, (2, 5)),
        ({"vocab_size": 9, "eos_token_id": None}, 9, None, ()),
        ({"vocab_size": 9, "eos_token_id": -1}, 9, None, ()),
        ({"vocab_size": 9, "eos_token_id": True}, 9, None, ()),
        ({"text_config": {"num_experts": 4, "vocab_size": 7, "max_position_embeddings": 32,
                          "eos_token_id": 1}, "vocab_size": 9, "eos_token_id": 3}, 7, 32, (1,)),
    ],
)  # fmt: skip
def test_what_a_config_says_of_a_text(
    config: dict[str, Any], vocabulary: int, context: int | None, ends: tuple[int, ...]
) -> None:
    assert vocabulary_size(config) == vocabulary
    assert context_length(config) == context
    assert document_ends(config) == ends


def test_a_config_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="does not say the size of the vocabulary"):
        vocabulary_size({"hidden_size": 4})
    assert MINIMUM_TOKENS == 8192


def record(**versions: str) -> Any:
    found = checkpoint(1)
    found.replay["versions"] = versions
    return found


def test_versions_are_those_of_the_newest_and_others_are_said() -> None:
    running = running_versions()
    same = record(**running)
    assert measured_versions([same, same]) == (running, ())
    older = record(**{**running, "torch": "1.0"})
    found, notes = measured_versions([same, older])
    assert found["torch"] == "1.0"
    assert notes == (
        f"measured earlier with other versions: torch 1.0 (now {running['torch']})",
        "checkpoints were measured with different versions of torch",
    )
    assert measured_versions([checkpoint(1)]) == (running, ()), "files of before name none"


def test_inputs_are_kept_at_the_rows_that_were_asked_for_in_any_order_of_batches() -> None:
    lengths, groups_S = np.array(LENGTHS), group_sequences(len(LENGTHS))
    wanted = np.array([1, 6, 14, 17, 30, 41])
    whole = trace_of(1).sample_x_MD
    assert whole is not None
    trace = trace_of(1)
    trace.sample_x_MD = None
    kept = KeptInputs(Plan((), groups_S, sample_rows=wanted), int(lengths.sum()))
    for members in ([3, 1], [5], [0, 2], [4]):
        rows = BatchRows.of(None, np.array(members), lengths, groups_S)
        kept.keep(trace, rows, torch.from_numpy(whole[rows.probe_N]))
    np.testing.assert_array_equal(trace.sample_x_MD, whole[wanted])


def test_padding_is_never_kept() -> None:
    lengths, groups_S = np.array([3, 2]), np.array([0, 1])
    flat = torch.tensor([0, 1, 2, 3, 4])  # of two rows of three positions, the last is padding
    rows = BatchRows.of(flat, np.array([0, 1]), lengths, groups_S)
    x = torch.arange(6.0 * WIDTH).reshape(6, WIDTH)
    trace = trace_of(1)
    trace.sample_x_MD = None
    KeptInputs(Plan((), groups_S, sample_rows=np.arange(5)), 5).keep(trace, rows, x)
    np.testing.assert_array_equal(trace.sample_x_MD, x[:5].numpy())
    silent = trace_of(2)
    silent.sample_x_MD = None
    KeptInputs(Plan((), groups_S), 5).keep(silent, rows, x)
    assert silent.sample_x_MD is None


def test_another_modules_input_takes_the_place_of_a_routers() -> None:
    lengths, groups_S = np.array([4]), np.array([0])
    rows, trace, experts = (
        BatchRows.of(None, np.array([0]), lengths, groups_S),
        trace_of(1),
        nn.Identity(),
    )
    trace.sample_x_MD = None
    plan = Plan((), groups_S, sample_rows=np.array([1, 3]),
                input_modules={trace.router.path: experts})  # fmt: skip
    kept = KeptInputs(plan, 4)
    hooks = kept.hook([trace], lambda _: rows)
    x = torch.randn(2, 2, WIDTH)
    kept.idle = True
    experts(x)
    assert trace.sample_x_MD is None
    kept.idle = False
    experts(x)
    np.testing.assert_array_equal(trace.sample_x_MD, x.reshape(4, WIDTH)[[1, 3]].numpy())
    assert len(hooks) == 1
