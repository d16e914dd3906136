"""Scoring functions: router logits z to positive scores s(z), with p = s(z) / Σ s(z).

Each file in this folder defines one as `SCORING`, in two versions: for NumPy arrays in float64 (for
`geometry/`) and for torch tensors (for `measuring/` and `fisher/`). A test compares both with each
other and with autograd. torch is imported only by the second version. Every scoring gives ln s(z)
and d ln s/dz, stable for logits of any size, so that p is defined even if all scores underflow.

Legend: E experts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.registry import scoring_modules

if TYPE_CHECKING:
    import torch

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Scoring:
    """A scoring function. It acts on each element; shapes are those of the logits.

    Attributes:
        name: its name in moegeo.
        config_names: its names in config.json files.
        score: s(z) of arrays.
        log_score: ln s(z) of arrays.
        log_slope: d ln s/dz of arrays.
        tensor_score: s(z) of tensors (..., E), up to a factor for each token; differentiable.
        tensor_logs: (ln s(z), d ln s/dz) of tensors; the slope may be a scalar.
        source: publication or code that defines it.
        place: its position in lists.
        monotone: whether a larger logit always has a larger score. Selection without a bias then
            follows the logits.
        shift_invariant: whether adding a constant to all logits leaves p unchanged.
        unit_logit: the logit whose score is 1; infinite where there is none.
    """

    name: str
    config_names: tuple[str, ...]
    score: Function
    log_score: Function
    log_slope: Function
    tensor_score: Callable[[torch.Tensor], torch.Tensor]
    tensor_logs: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    source: str
    place: int = 99
    monotone: bool = True
    shift_invariant: bool = False
    unit_logit: float = math.inf


@functools.cache
def all_scorings() -> Mapping[str, Scoring]:
    """Name -> scoring, by `place`."""
    return {found.name: found for found in scoring_modules()}


@functools.cache
def names_in_configs() -> Mapping[str, str]:
    """Name in config.json files -> name in moegeo."""
    return {name: found.name for found in all_scorings().values() for name in found.config_names}


def find_scoring(name: str) -> Scoring:
    """The scoring called `name`.

    Raises:
        UnsupportedArchitectureError: no such scoring.
    """
    if name not in all_scorings():
        raise UnsupportedArchitectureError(
            f"the scoring function {name!r} is not known",
            found=f"known: {', '.join(all_scorings())}",
            hint="report this model type, with its config.json",
        )
    return all_scorings()[name]
