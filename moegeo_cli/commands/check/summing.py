"""Computes the sums of a layer: first of its router, then of every expert, each read once.

Legend: E experts, D width of the router's input, R rows of an expert's matrix.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.commands.check.boundary import bias_rounding
from moegeo_cli.commands.check.layer_sums import STATISTICS, LayerSums, NearGroup
from moegeo_cli.commands.check.reading import DIGEST_BYTES, MoELayer, Piece
from moegeo_cli.commands.check.sketches import DIMENSIONS, distances, mean_distance, pack, sketch
from moegeo_cli.geometry.masked import find_masked
from moegeo_cli.geometry.selection import SelectionRule
from moegeo_cli.scorings import all_scorings

BFLOAT16 = 2.0**-8  # relative distance of two neighbouring bfloat16 numbers
SKETCH_SLACK = 1.6  # sketches estimate distances: pairs up to this times the limit are read again
MAX_CANDIDATES = 256


_Packed = tuple[int, np.ndarray[Any, Any]]  # number of rows, and packed bits: which rows are zero


def sum_layer(
    layer: MoELayer,
    architecture: Architecture | None,
    *,
    quick: bool,
    norm_D: np.ndarray[Any, Any] | None = None,
    loads: np.ndarray[Any, Any] | None = None,
) -> LayerSums:
    """Read a layer once and compute its sums.

    Args:
        layer: the layer.
        architecture: how the model chooses experts; None if not known.
        quick: read only the router and its biases.
        norm_D: weights of the norm before the router, shape (D,); None if not found.
        loads: tokens per expert, shape (E,); None if the files do not count them.

    Raises:
        MoegeoError: a file changed while it was read, or is damaged.
    """
    found = _sum_router(layer, architecture, norm_D)
    if loads is not None and loads.size == found.experts and np.isfinite(loads).all():
        found = dataclasses.replace(found, loads=tuple(float(n) for n in loads))
    if quick:
        return found
    if not layer.experts:
        reason = "no tensors of experts were found beside this router"
        return dataclasses.replace(found, reasons={**found.reasons, "experts": reason})
    return _sum_experts(layer, found)


def _sum_router(
    layer: MoELayer, architecture: Architecture | None, norm_D: np.ndarray[Any, Any] | None
) -> LayerSums:
    weight_ED = layer.weight_ED
    rows = len(weight_ED) if weight_ED is not None else min(layer.router.shape)
    reasons = dict(layer.reasons)
    logit_bias_E = _of_length(layer.bias_E, rows, "bias", reasons)
    bias_E = _of_length(layer.selection_bias_E, rows, "selection_bias", reasons)
    found = LayerSums(
        layer=layer.layer,
        router=layer.router.module,
        experts=rows,
        router_digest=layer.router_digest,
        bias_digest=layer.bias_digest,
        top_k=top_k_of(architecture, layer.layer),
        reasons=reasons,
    )
    broken = set(_places(_broken(logit_bias_E)) + _places(_broken(bias_E)))
    masked = find_masked(weight_ED, logit_bias_E, bias_E)
    values = None
    if bias_E is not None:
        values = tuple(float(v) if math.isfinite(v) else None for v in bias_E)
    rounding = None
    if bias_E is not None and layer.bias_dtype is not None:
        rule = _rule(architecture, layer.layer, bias_E)
        rounding = bias_rounding(
            bias_E, layer.bias_dtype, rule, weight_ED, logit_bias_E, norm_D
        )  # fmt: skip
    rounding_fields = None if rounding is None else dataclasses.asdict(rounding)
    if weight_ED is None:
        return dataclasses.replace(
            found, router_nonfinite=tuple(sorted(broken)), masked=masked,
            selection_bias=values, rounding=rounding_fields,
        )  # fmt: skip
    finite_E = np.isfinite(weight_ED).all(1)
    norms_E = np.linalg.norm(weight_ED.astype(np.float64), axis=1)
    zero_E = finite_E & ~weight_ED.any(1)
    kept_E = finite_E & ~zero_E
    kept_E[list(masked)] = False
    stable, cosine = _shape_of(weight_ED[kept_E])
    return dataclasses.replace(
        found,
        width=int(weight_ED.shape[1]),
        row_norms=tuple(float(n) if ok else None for n, ok in zip(norms_E, finite_E, strict=True)),
        router_nonfinite=tuple(sorted(broken | set(_places(~finite_E)))),
        zero_rows=tuple(_places(zero_E)),
        masked=masked,
        stable_rank=stable,
        cosine=cosine,
        selection_bias=values,
        rounding=rounding_fields,
    )


def _of_length(
    bias_E: np.ndarray[Any, Any] | None, rows: int, what: str, reasons: dict[str, str]
) -> np.ndarray[Any, Any] | None:
    """The bias if it has one entry per expert; else None, and the reason goes into `reasons`."""
    if bias_E is None or bias_E.size == rows:
        return bias_E
    reasons[what] = f"it has {bias_E.size} entries for {rows} experts"
    return None


def top_k_of(architecture: Architecture | None, layer: int | None) -> int | None:
    """Experts per token of a layer; None if the config does not say."""
    if architecture is None:
        return None
    by_layer = architecture.top_k_by_layer
    if by_layer is not None and layer is not None and layer < len(by_layer):
        return by_layer[layer]
    return architecture.top_k


def _rule(
    architecture: Architecture | None, layer: int | None, bias_E: np.ndarray[Any, Any]
) -> SelectionRule | None:
    top_k = top_k_of(architecture, layer)
    if architecture is None or top_k is None or not 0 < top_k < bias_E.size:
        return None
    if architecture.scoring is None or architecture.scoring not in all_scorings():
        return None
    own = architecture.selection
    groups = own.groups if own.groups and bias_E.size % own.groups[0] == 0 else None
    return SelectionRule(
        top_k, architecture.scoring, bias_E, groups, own.group_score or "top2", own.bias_on
    )


def _shape_of(rows_ED: np.ndarray[Any, Any]) -> tuple[float | None, float | None]:
    """Stable rank, and mean absolute cosine between rows; None for fewer than two rows.

    Args:
        rows_ED: finite rows that are not zero.
    """
    if len(rows_ED) < 2:
        return None, None
    # Divide by the largest entry, so that no square overflows.
    scaled_ED = rows_ED.astype(np.float64) / np.abs(rows_ED).max()
    gram_EE = scaled_ED @ scaled_ED.T
    squares_E = np.diagonal(gram_EE)
    largest = float(np.linalg.eigvalsh(gram_EE)[-1])
    scale_E = np.sqrt(squares_E)
    cosine_EE = np.abs(gram_EE) / np.outer(scale_E, scale_E)
    above = np.triu_indices(len(rows_ED), 1)
    return float(squares_E.sum() / largest), float(cosine_EE[above].mean())


def _broken(bias_E: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Whether entries are NaN or +infinity. -infinity masks an expert on purpose."""
    if bias_E is None:
        return np.zeros(0, bool)
    broken: np.ndarray[Any, Any] = np.isnan(bias_E) | (bias_E == np.inf)
    return broken


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


def _sum_experts(layer: MoELayer, found: LayerSums) -> LayerSums:
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
    for by_expert in _of_one_size(empty):
        common = functools.reduce(np.bitwise_and, (bits for _, bits in by_expert.values()))
        whole = all(bits.sum() and _count(bits) == rows for rows, bits in by_expert.values())
        for expert, (_, zero_rows) in by_expert.items():
            if whole or (zero_rows & ~common).any():
                found.add(expert)
    return found


def _of_one_size(
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


def _places(flags: np.ndarray[Any, Any]) -> list[int]:
    return [int(i) for i in np.flatnonzero(flags)]
