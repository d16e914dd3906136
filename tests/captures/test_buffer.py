"""The rows of a capture: which are kept, which passes are refused, and what the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from moegeo_cli.captures.buffer import RowBuffer
from moegeo_cli.errors import OutputError, UsageError
from moegeo_cli.replay.reading import RouterCall

WIDTH, EXPERTS, CHOSEN = 4, 3, 2


def call(rows: int, start: int = 0, *, width: int = WIDTH, observed: bool = True) -> RouterCall:
    """A call whose inputs count from `start`, so that each row can be recognised."""
    x_ND = torch.arange(start, start + rows)[:, None].expand(-1, width).float()
    logits_NE = x_ND[:, :1] + torch.arange(EXPERTS)
    selected_NK = torch.arange(CHOSEN).expand(rows, -1)
    return RouterCall(x_ND, logits_NE, torch.ones(rows, CHOSEN), selected_NK, observed)


def add(buffer: RowBuffer, sequences: int, length: int, start: int = 0, **more: object) -> None:
    ids = torch.arange(start, start + sequences * length).reshape(sequences, length)
    domain = more.pop("domain", None)
    assert domain is None or isinstance(domain, str)
    mask = {"attention_mask": more["mask"]} if "mask" in more else {}
    buffer.add({"gate": call(ids.numel(), start)}, {"input_ids": ids, **mask}, domain,
               training=bool(more.get("training")))  # type: ignore[dict-item]  # fmt: skip


def joined(buffer: RowBuffer, name: str) -> list[float]:
    """The first column of a tensor over all passes."""
    whole = torch.cat(buffer.rows[name])
    values: list[float] = (whole if whole.ndim == 1 else whole[:, 0]).tolist()
    return values


def test_rows_of_several_passes_follow_each_other() -> None:
    buffer = RowBuffer(100)
    add(buffer, 2, 3)
    add(buffer, 1, 2, start=6)
    assert joined(buffer, "router.gate.inputs") == list(range(8))
    assert joined(buffer, "token_ids") == list(range(8))
    assert joined(buffer, "sequence") == [0, 0, 0, 1, 1, 1, 2, 2]
    assert (buffer.tokens, buffer.full) == (8, False)


def test_padding_is_left_out() -> None:
    buffer = RowBuffer(100)
    add(buffer, 2, 3, mask=torch.tensor([[1, 1, 0], [0, 1, 1]]))
    assert joined(buffer, "router.gate.inputs") == [0, 1, 4, 5]
    assert joined(buffer, "sequence") == [0, 0, 1, 1]


def test_a_pass_of_padding_alone_adds_nothing() -> None:
    buffer = RowBuffer(100)
    add(buffer, 1, 3, mask=torch.zeros(1, 3))
    assert (buffer.rows, buffer.tokens, buffer.full) == ({}, 0, False)


@pytest.mark.parametrize(
    ("limit", "kept", "full"),
    [
        (2, [0, 1], True),  # the start of the first sequence
        (3, [0, 1, 2], True),
        (5, [0, 1, 2], True),  # the second sequence does not fit, and is not cut
        (6, [0, 1, 2, 3, 4, 5], True),
        (7, [0, 1, 2, 3, 4, 5], False),
    ],
)
def test_whole_sequences_are_kept_up_to_the_limit(limit: int, kept: list[int], full: bool) -> None:
    buffer = RowBuffer(limit)
    add(buffer, 2, 3)
    assert joined(buffer, "router.gate.inputs") == kept
    assert (buffer.tokens, buffer.full) == (len(kept), full)


def test_a_later_sequence_that_does_not_fit_ends_the_capture() -> None:
    buffer = RowBuffer(7)
    add(buffer, 2, 3)
    add(buffer, 1, 3, start=6)
    assert joined(buffer, "router.gate.inputs") == list(range(6))
    assert buffer.full


def test_selected_experts_are_kept_only_if_they_were_observed() -> None:
    buffer = RowBuffer(100)
    ids = torch.zeros(1, 2, dtype=torch.long)
    buffer.add({"a": call(2), "b": call(2, observed=False)}, {"input_ids": ids}, None,
               training=False)  # fmt: skip
    kept = set(buffer.rows)
    assert {"router.a.selected", "router.a.weights", "router.b.logits"} <= kept
    assert not {"router.b.selected", "router.b.weights"} & kept


@pytest.mark.parametrize(
    ("calls", "inputs", "words"),
    [
        ({"gate": call(5)}, {"ids": torch.zeros(2, 3)}, r"\[5\] rows of 2 sequences"),
        ({"gate": call(4)}, {}, r"\[4\] rows of 0 sequences"),
        ({"a": call(4), "b": call(2)}, {"ids": torch.zeros(2, 2)}, r"\[2, 4\] rows"),
    ],
)
def test_rows_of_unknown_sequences_are_refused(
    calls: dict[str, RouterCall], inputs: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        RowBuffer(100).add(calls, inputs, None, training=False)


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ({"gate": call(4, width=WIDTH + 1)}, "has another width"),
        ({"gate": call(4, observed=False)}, "gave other tensors"),
        ({"gate": call(4), "other": call(4)}, "gave other tensors"),
    ],
)
def test_a_pass_of_another_form_is_refused_and_changes_nothing(
    calls: dict[str, RouterCall], words: str
) -> None:
    buffer = RowBuffer(100)
    add(buffer, 2, 2)
    with pytest.raises(UsageError, match=words):
        buffer.add(calls, {"input_ids": torch.zeros(2, 2, dtype=torch.long)}, "new", training=True)
    assert buffer.tokens == 4
    assert joined(buffer, "router.gate.inputs") == list(range(4))


def written(
    buffer: RowBuffer, path: Path, **facts: object
) -> tuple[dict[str, torch.Tensor], object]:
    buffer.write(path, **{"step": None, "fingerprint": None, **facts})  # type: ignore[arg-type]
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["moegeo.captures"])


def test_the_file_holds_the_rows_and_only_what_is_known(tmp_path: Path) -> None:
    buffer = RowBuffer(100)
    add(buffer, 2, 2)
    tensors, facts = written(buffer, tmp_path / "c.safetensors")
    assert set(tensors) == {"sequence", "token_ids", "router.gate.inputs", "router.gate.logits",
                            "router.gate.selected", "router.gate.weights"}  # fmt: skip
    assert tensors["sequence"].tolist() == [0, 0, 1, 1]
    assert facts == {"version": 1, "training": False}
    assert not buffer.rows


def test_domains_are_numbered_in_the_order_in_which_they_were_named(tmp_path: Path) -> None:
    buffer = RowBuffer(100)
    for start, domain in enumerate(("code", None, "prose", "code")):
        add(buffer, 1, 1, start=start, domain=domain, training=start == 3)
    tensors, facts = written(buffer, tmp_path / "c.safetensors", step=7, fingerprint="abc")
    assert tensors["domains"].tolist() == [0, 1, 2, 0]
    assert facts == {"version": 1, "step": 7, "fingerprint": "abc", "training": True,
                     "domains": ["code", "other", "prose"]}  # fmt: skip


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    buffer = RowBuffer(100)
    add(buffer, 1, 2)
    with pytest.raises(OutputError):
        buffer.write(tmp_path / "file" / "c.safetensors", step=None, fingerprint=None)
