"""Computes the sums of a layer's experts: digests, norms, sketches, statistics, near copies.

Legend: E experts, D dimensions of a sketch, R rows of an expert's matrix.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moegeo_cli.commands.check.layer_sums import STATISTICS, LayerSums, NearGroup
from moegeo_cli.commands.check.reading import DIGEST_BYTES, MoELayer, Piece
from moegeo_cli.commands.check.sketches import DIMENSIONS, distances, mean_distance, pack, sketch

BFLOAT16 = 2.0**-8  # relative distance of two neighbouring bfloat16 numbers
SKETCH_SLACK = 1.6  # sketches estimate distances: pairs up to this times the limit are read again
MAX_CANDIDATES = 256
_Packed = tuple[int, np.ndarray[Any, Any]]  # number of rows, and packed bits: which rows are zero


class _ExpertSums:
    """Running sums of one expert."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.square = 0.0
        self.finite = True
        self.known = True
        self.sketch = np.zeros(DIMENSIONS)
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def add(self, piece: Piece) -> np.ndarray[Any, Any] | None:
        """Add a piece. For a matrix with values, return which of its rows are zero; else None."""
        self.digest.update(piece.role.encode() + b"\0" + piece.digest)
        values = piece.values
        if values is None:
            self.known = False
            return None
        self.shapes.append((piece.role, values.shape))
        flat = values.reshape(len(values) if values.ndim else 1, -1)
        rows_R = np.einsum("ij,ij->i", flat, flat)
        total = float(rows_R.sum(dtype=np.float64))
        if not math.isfinite(total):
            if np.isfinite(flat).all():  # the squares overflow float32
                total = float(np.square(flat, dtype=np.float64).sum())
            else:
                self.finite = False
        if not piece.is_matrix:
            return None
        self.sketch += sketch(values, piece.role) if self.finite else 0.0
        self.square += total
        empty_R: np.ndarray[Any, Any] = rows_R == 0.0
        if empty_R.any():  # a square of a small number may underflow to 0
            empty_R[empty_R] = ~flat[empty_R].any(1)
        return empty_R


def sum_experts(layer: MoELayer, found: LayerSums) -> LayerSums:
    """Read every expert of a layer once and add the experts' sums to those of the router.

    Args:
        layer: the layer.
        found: the sums of its router.

    Raises:
        MoegeoError: a file changed while it was read, or is damaged.
    """
    sums = {expert: _ExpertSums() for expert in layer.experts}
    statistics = [kind(layer) for kind in STATISTICS] if layer.weight_ED is not None else []
    empty: dict[str, dict[int, _Packed]] = {}
    reasons = dict(found.reasons)
    for piece in layer.read_experts():
        rows_R = sums[piece.expert].add(piece)
        if rows_R is not None:
            empty.setdefault(piece.role, {})[piece.expert] = (
                len(rows_R),
                np.packbits(rows_R),
            )
        if piece.reason is not None:
            reasons.setdefault("expert values", piece.reason)
        for statistic in statistics:
            statistic.add(piece)
    count = max(sums) + 1
    own = [sums.get(expert) for expert in range(count)]
    if any(s is None for s in own):
        missing = [e for e, s in enumerate(own) if s is None]
        reasons["experts missing"] = f"the files hold no weights of experts {missing[:8]}"
    nonfinite = tuple(e for e, s in sums.items() if not s.finite)
    zero = tuple(sorted(_zero_experts(empty)))
    digests = tuple("" if s is None else s.digest.hexdigest()[: 2 * DIGEST_BYTES] for s in own)
    near: tuple[NearGroup, ...] = ()
    packed, distance = None, None
    uneven = len({tuple(s.shapes) for s in own if s is not None and s.known}) > 1
    if uneven:
        reasons["expert values"] = "its experts' weights differ in shape"
    elif all(s is not None and s.known and s.finite for s in own):
        sketches = np.asarray([s.sketch for s in own if s is not None])
        norms = np.array([math.sqrt(s.square) for s in own if s is not None])
        packed = pack(list(sketches))
        near = _near_groups(layer, sketches, norms, digests, set(zero))
        distance = mean_distance(sketches, norms)
    return dataclasses.replace(
        found,
        expert_digests=digests,
        expert_norms=tuple(
            math.sqrt(s.square) if s is not None and s.known and s.finite else None for s in own
        ),
        expert_nonfinite=nonfinite,
        expert_zero=zero,
        expert_near=near,
        sketches=packed,
        expert_distance=distance,
        statistics={statistic.name: statistic.result() for statistic in statistics},
        reasons=reasons,
    )


def _zero_experts(empty: Mapping[str, Mapping[int, _Packed]]) -> set[int]:
    """Experts with rows of zeros. Rows that are zero in every expert count as padding."""
    found: set[int] = set()
    for by_expert in _group_by_rows(empty):
        common = functools.reduce(np.bitwise_and, (bits for _, bits in by_expert.values()))
        whole = all(bits.sum() and _count(bits) == rows for rows, bits in by_expert.values())
        for expert, (_, zero_rows) in by_expert.items():
            if whole or (zero_rows & ~common).any():
                found.add(expert)
    return found


def _group_by_rows(
    empty: Mapping[str, Mapping[int, _Packed]],
) -> Iterator[Mapping[int, _Packed]]:
    """For each role, the experts grouped by their number of rows."""
    for by_expert in empty.values():
        by_rows: dict[int, dict[int, _Packed]] = {}
        for expert, packed in by_expert.items():
            by_rows.setdefault(packed[0], {})[expert] = packed
        yield from by_rows.values()


def _count(packed: np.ndarray[Any, Any]) -> int:
    return int(np.unpackbits(packed).sum())


def _near_groups(
    layer: MoELayer,
    sketches_ED: np.ndarray[Any, Any],
    norms_E: np.ndarray[Any, Any],
    digests: tuple[str, ...],
    lost: set[int],
) -> tuple[NearGroup, ...]:
    """Groups of experts that differ by less than rounding to bfloat16.

    Sketches select candidate pairs. The weights of these pairs are read again.
    """
    first: dict[str, int] = {}
    for expert, digest in enumerate(digests):
        first.setdefault(digest, expert)
    kinds = [e for e in sorted(first.values()) if e not in lost and norms_E[e] > 0.0]
    if len(kinds) < 2:
        return ()
    relative = distances(sketches_ED[kinds]) / np.maximum.outer(norms_E[kinds], norms_E[kinds])
    ones, others = np.nonzero(np.triu(relative < BFLOAT16 * SKETCH_SLACK, 1))
    pairs = [(kinds[a], kinds[b]) for a, b in zip(ones, others, strict=True)][:MAX_CANDIDATES]
    groups: list[tuple[set[int], float]] = []
    for one, other in pairs:
        known = next((g for g, _ in groups if one in g and other in g), None)
        if known is not None:
            continue
        distance = _distance(layer, one, other) / max(norms_E[one], norms_E[other])
        if distance >= BFLOAT16:
            continue
        joined, largest = {one, other}, distance
        rest = []
        for members, furthest in groups:
            if members & joined:
                joined, largest = joined | members, max(largest, furthest)
            else:
                rest.append((members, furthest))
        groups = [*rest, (joined, largest)]
    equal = {e: [i for i, d in enumerate(digests) if d == digests[e]] for e in first.values()}
    return tuple(
        NearGroup(tuple(sorted(i for e in members for i in equal[e])), float(furthest))
        for members, furthest in sorted(groups, key=lambda g: min(g[0]))
    )


def _distance(layer: MoELayer, one: int, other: int) -> float:
    """Frobenius distance between two experts, biases included. Their weights are read again."""
    square = 0.0
    for a, b in zip(layer.read_expert(one), layer.read_expert(other), strict=True):
        if a.values is None or b.values is None or a.values.shape != b.values.shape:
            return math.inf
        square += float(np.square(a.values - b.values, dtype=np.float64).sum())
    return math.sqrt(square)
