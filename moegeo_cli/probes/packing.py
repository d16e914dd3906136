"""Cut one row of a probe file into its sequences, by its masks, positions and lengths.

Every mask and length of a row is applied, or the row is refused with an error. Padding tokens are
removed. Sequences that were packed into one row are replayed one by one, so that none attends to
another.

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
# All are lists of integers with one value per token, except LENGTHS and BORDERS.
FIELDS = (
    "labels", "attention_mask", "position_ids", "token_type_ids", *SEGMENTS, *LENGTHS, *BORDERS,
    *LOSS_MASKS,
)  # fmt: skip
HINT = "give one sequence per row, or packed ones with attention_mask, position_ids or segment_ids"


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence of a row."""

    input_ids: np.ndarray
    labels: np.ndarray | None


def cut_row(ids_N: np.ndarray, fields: Mapping[str, np.ndarray], where: str) -> list[Piece]:
    """The sequences of a row, without padding; an empty list if the row is all padding.

    Args:
        ids_N: token ids.
        fields: the row's masks, labels, positions and lengths, by the names in `FIELDS`.
        where: the row's place in the file, for errors.

    Raises:
        ProbeError: a field has another length than the ids, or values that are not supported.
    """
    for name, values in fields.items():
        if name not in (*LENGTHS, *BORDERS) and len(values) != len(ids_N):
            raise ProbeError(
                f"{where} has {name} of another length than its input_ids",
                found=f"{len(ids_N)} input_ids and {len(values)} {name}",
                hint="give one label per token, not shifted; -100 for no loss"
                if name == "labels"
                else "give one value per token",
            )
    if (fields.get("token_type_ids", np.zeros(1)) != 0).any():
        raise _unsupported(
            where, "token_type_ids other than 0", "moegeo calls the model with token ids only"
        )
    kept_N, numbers_N = _read_mask(len(ids_N), fields, where)
    for name in SEGMENTS:
        if name in fields:
            own_N = fields[name]
            if "attention_mask" not in fields:
                kept_N &= ~_trailing_zeros(own_N)
            numbers_N = numbers_N + np.cumsum(_changes(own_N))
            _refuse_interleaved(own_N[kept_N], name, where)
    if not kept_N.any():
        return []
    places = np.flatnonzero(kept_N)
    start, end = int(places[0]), int(places[-1]) + 1
    if end - start != len(places):
        raise _unsupported(where, "attention_mask with gaps", HINT)
    starts = _changes(numbers_N[start:end])
    starts |= _starts_by_lengths(fields, end - start, where)
    _add_position_starts(fields.get("position_ids"), start, end, starts, where, fields)
    labels_N = _labels(ids_N, fields, where)
    borders = [start, *(start + np.flatnonzero(starts)), end]
    return [
        Piece(ids_N[a:b], None if labels_N is None else labels_N[a:b])
        for a, b in itertools.pairwise(borders)
        if b > a
    ]


def _read_mask(
    length: int, fields: Mapping[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens an attention mask keeps, and the number of each token's sequence."""
    mask_N = fields.get("attention_mask")
    if mask_N is None:
        return np.ones(length, bool), np.zeros(length, np.int64)
    if (mask_N < 0).any():
        raise _unsupported(where, f"{int(mask_N.min())} in attention_mask", HINT)
    _refuse_interleaved(mask_N[mask_N > 0], "attention_mask", where)
    return mask_N > 0, np.cumsum(_changes(mask_N))


def _changes(values_N: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before."""
    found = np.zeros(len(values_N), bool)
    found[1:] = values_N[1:] != values_N[:-1]
    return found


def _trailing_zeros(values_N: np.ndarray) -> np.ndarray:
    """True at zeros after the last nonzero number: the padding if segments count from 1."""
    others = np.flatnonzero(values_N)
    found = np.zeros(len(values_N), bool)
    if len(others):
        found[int(others[-1]) + 1 :] = True
    return found


def _refuse_interleaved(values_N: np.ndarray, name: str, where: str) -> None:
    runs = values_N[np.concatenate([[True], _changes(values_N)[1:]])] if len(values_N) else values_N
    if len(np.unique(runs)) != len(runs):
        raise _unsupported(where, f"{name} with one sequence in several separate parts", HINT)


def _starts_by_lengths(fields: Mapping[str, np.ndarray], size: int, where: str) -> np.ndarray:
    """True where a sequence begins, according to the row's sequence lengths."""
    found = np.zeros(size, bool)
    for name in (*LENGTHS, *BORDERS):
        if name not in fields:
            continue
        values = fields[name]
        borders = np.concatenate([[0], np.cumsum(values)]) if name in LENGTHS else values
        if borders[0] != 0 or borders[-1] != size or (np.diff(borders) < 1).any():
            raise _unsupported(where, f"{name} that do not add up to its {size} tokens", HINT)
        found[borders[1:-1].astype(np.int64)] = True
    return found


def _add_position_starts(
    positions_N: np.ndarray | None, start: int, end: int, starts: np.ndarray, where: str,
    fields: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Mark in `starts` where positions restart at 0; refuse positions that do not count up."""
    if positions_N is None:
        return
    own_N = positions_N[start:end]
    again = own_N == 0
    if "attention_mask" not in fields and again[-2:].all() and len(again) > 2:
        raise _unsupported(
            where, "position_ids that end in several zeros: padding, or sequences of one token",
            "give its attention_mask too",
        )  # fmt: skip
    again[0] = False
    starts |= again
    first = np.maximum.accumulate(np.where(starts, np.arange(len(own_N)), 0))
    if (own_N != np.arange(len(own_N)) - first).any():
        raise _unsupported(where, "position_ids that do not count up from 0 in each sequence", HINT)


def _labels(ids_N: np.ndarray, fields: Mapping[str, np.ndarray], where: str) -> np.ndarray | None:
    """The labels, with -100 at tokens that a loss mask excludes."""
    labels_N = fields.get("labels")
    for name in LOSS_MASKS:
        if name in fields:
            mask_N = fields[name]
            if ((mask_N != 0) & (mask_N != 1)).any():
                raise _unsupported(
                    where, f"{name} other than 0 and 1", "give 1 where a token is predicted"
                )
            given_N = ids_N if labels_N is None else labels_N
            labels_N = np.where(mask_N == 1, given_N.astype(np.int64), IGNORED_LABEL)
    return labels_N


def _unsupported(where: str, found: str, hint: str) -> ProbeError:
    return ProbeError(f"{where} has fields that are not supported", found=found, hint=hint)
