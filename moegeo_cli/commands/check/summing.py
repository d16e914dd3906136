"""Computes the sums of a layer: of its router here, of its experts in `expert_sums.py`.

Legend: E experts, D width of the router's input.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.commands.check.boundary import bias_rounding
from moegeo_cli.commands.check.expert_sums import sum_experts
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.reading import MoELayer
from moegeo_cli.geometry.masked import find_masked
from moegeo_cli.geometry.selection import SelectionRule
from moegeo_cli.scorings import all_scorings


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
    return sum_experts(layer, found)


def _sum_router(
    layer: MoELayer, architecture: Architecture | None, norm_D: np.ndarray[Any, Any] | None
) -> LayerSums:
    """Compute the sums of a layer's router and its biases.

    Args:
        layer: the layer.
        architecture: how the model chooses experts; None if not known.
        norm_D: weights of the norm before the router, shape (D,); None if not found.
    """
    weight_ED = layer.weight_ED
    rows = len(weight_ED) if weight_ED is not None else min(layer.router.shape)
    reasons = dict(layer.reasons)
    logit_bias_E = _check_length(layer.bias_E, rows, "bias", reasons)
    bias_E = _check_length(layer.selection_bias_E, rows, "selection_bias", reasons)
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
    stable, cosine = _rank_and_cosine(weight_ED[kept_E])
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


def _check_length(
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


def _rank_and_cosine(rows_ED: np.ndarray[Any, Any]) -> tuple[float | None, float | None]:
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


def _places(flags: np.ndarray[Any, Any]) -> list[int]:
    return [int(i) for i in np.flatnonzero(flags)]
