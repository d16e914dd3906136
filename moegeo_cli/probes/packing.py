"""Padding, packed sequences and loss masks: one row of a file cut into its sequences.

What a row says of its tokens is honoured, or the row is refused by name. A token that is masked
off reaches no model and no statistic. Sequences that were packed into one row are measured apart,
so that none attends to another.

Legend: N tokens of a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.dataset import IGNORED_LABEL

SEGMENTS = ("segment_ids", "sequence_ids", "document_ids", "doc_ids", "seq_idx")
LENGTHS = ("seq_lengths", "seq_lens", "seqlens", "sequence_lengths")
BORDERS = ("cu_seqlens",)
LOSS_MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "response_mask")
# All of these are lists of integers; those of LENGTHS and BORDERS are not one a token.
FIELDS = (
    "labels", "attention_mask", "position_ids", "token_type_ids", *SEGMENTS, *LENGTHS, *BORDERS,
    *LOSS_MASKS,
)  # fmt: skip
HINT = "one sequence a row, or packed ones with attention_mask, position_ids or segment_ids"


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence of a row."""

    input_ids: np.ndarray
    labels: np.ndarray | None


def cut_row(ids_N: np.ndarray, fields: Mapping[str, np.ndarray], where: str) -> list[Piece]:
    """The sequences of a row, without padding; none where all of it is padding.

    Args:
        ids_N: token ids.
        fields: what the row says of them, by the names in `FIELDS`.
        where: the row, for errors.

    Raises:
        ProbeError: fields of another length, or that say what is not supported.
    """
    for name, values in fields.items():
        if name not in (*LENGTHS, *BORDERS) and len(values) != len(ids_N):
            raise ProbeError(
                f"{where} has {name} of another length than its input_ids",
                found=f"{len(ids_N)} input_ids and {len(values)} {name}",
                hint="labels stand at their own tokens; -100 for no loss"
                if name == "labels"
                else "each of them is of one token",
            )
    if (fields.get("token_type_ids", np.zeros(1)) != 0).any():
        raise _refused(
            where, "token_type_ids besides 0", "the replay gives a model token ids alone"
        )
    kept_N, numbers_N = _masked(len(ids_N), fields, where)
    for name in SEGMENTS:
        if name in fields:
            own_N = fields[name]
            if "attention_mask" not in fields:
                kept_N &= ~_trailing_zeros(own_N)
            numbers_N = numbers_N + np.cumsum(_changes(own_N))
            _refuse_return(own_N[kept_N], name, where)
    if not kept_N.any():
        return []
    places = np.flatnonzero(kept_N)
    start, end = int(places[0]), int(places[-1]) + 1
    if end - start != len(places):
        raise _refused(where, "attention_mask with gaps", HINT)
    starts = _changes(numbers_N[start:end])
    starts |= _counted(fields, end - start, where)
    _honour_positions(fields.get("position_ids"), start, end, starts, where, fields)
    labels_N = _labels(ids_N, fields, where)
    borders = [start, *(start + np.flatnonzero(starts)), end]
    return [
        Piece(ids_N[a:b], None if labels_N is None else labels_N[a:b])
        for a, b in itertools.pairwise(borders)
        if b > a
    ]


def _masked(
    length: int, fields: Mapping[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens an attention mask keeps, and the number of each one's sequence."""
    mask_N = fields.get("attention_mask")
    if mask_N is None:
        return np.ones(length, bool), np.zeros(length, np.int64)
    if (mask_N < 0).any():
        raise _refused(where, f"{int(mask_N.min())} in attention_mask", HINT)
    _refuse_return(mask_N[mask_N > 0], "attention_mask", where)
    return mask_N > 0, np.cumsum(_changes(mask_N))


def _changes(values_N: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before."""
    found = np.zeros(len(values_N), bool)
    found[1:] = values_N[1:] != values_N[:-1]
    return found


def _trailing_zeros(values_N: np.ndarray) -> np.ndarray:
    """True at zeros behind the last other number: padding of numbers that count from 1."""
    others = np.flatnonzero(values_N)
    found = np.zeros(len(values_N), bool)
    if len(others):
        found[int(others[-1]) + 1 :] = True
    return found


def _refuse_return(values_N: np.ndarray, name: str, where: str) -> None:
    runs = values_N[np.concatenate([[True], _changes(values_N)[1:]])] if len(values_N) else values_N
    if len(np.unique(runs)) != len(runs):
        raise _refused(where, f"{name} in which a sequence comes back after another", HINT)


def _counted(fields: Mapping[str, np.ndarray], size: int, where: str) -> np.ndarray:
    """True where a sequence begins by the lengths of the sequences."""
    found = np.zeros(size, bool)
    for name in (*LENGTHS, *BORDERS):
        if name not in fields:
            continue
        values = fields[name]
        borders = np.concatenate([[0], np.cumsum(values)]) if name in LENGTHS else values
        if borders[0] != 0 or borders[-1] != size or (np.diff(borders) < 1).any():
            raise _refused(where, f"{name} that do not add up to its {size} tokens", HINT)
        found[borders[1:-1].astype(np.int64)] = True
    return found


def _honour_positions(
    positions_N: np.ndarray | None, start: int, end: int, starts: np.ndarray, where: str,
    fields: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Add to `starts` where positions begin again; refuse positions that are no count from 0."""
    if positions_N is None:
        return
    own_N = positions_N[start:end]
    again = own_N == 0
    if "attention_mask" not in fields and again[-2:].all() and len(again) > 2:
        raise _refused(
            where, "position_ids that end in several zeros: padding, or sequences of one token",
            "give its attention_mask too",
        )  # fmt: skip
    again[0] = False
    starts |= again
    first = np.maximum.accumulate(np.where(starts, np.arange(len(own_N)), 0))
    if (own_N != np.arange(len(own_N)) - first).any():
        raise _refused(where, "position_ids that do not count on from 0 in each sequence", HINT)


def _labels(ids_N: np.ndarray, fields: Mapping[str, np.ndarray], where: str) -> np.ndarray | None:
    """The labels, those of tokens that a loss mask leaves out being -100."""
    labels_N = fields.get("labels")
    for name in LOSS_MASKS:
        if name in fields:
            mask_N = fields[name]
            if ((mask_N != 0) & (mask_N != 1)).any():
                raise _refused(where, f"{name} besides 0 and 1", "1 where a token is predicted")
            given_N = ids_N if labels_N is None else labels_N
            labels_N = np.where(mask_N == 1, given_N.astype(np.int64), IGNORED_LABEL)
    return labels_N


def _refused(where: str, found: str, hint: str) -> ProbeError:
    return ProbeError(f"{where} says of its tokens what is not supported", found=found, hint=hint)
