"""How router logits become positive scores s(z), and p = s(z) / Σ s(z): a scoring a file.

A file has `SCORING`. It says the same function twice: for arrays in float64, where the geometry
works, and for torch's tensors, where the model's own pass and the Fisher do; a test holds them to
each other and to autograd. Torch is imported when a tensor comes. Every scoring gives ln s(z) and
d ln s/dz, stable for logits of any size, so that a router whose scores all underflow still has a
distribution.
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
    """One way of turning logits into positive scores.

    Attributes:
        name: its name in moegeo.
        config_names: what configs call it.
        score: s(z) of arrays.
        log_score: ln s(z) of arrays.
        log_slope: d ln s/dz of arrays.
        tensor_score: scores of tensors of shape (..., E), up to a factor a token; autograd passes.
        tensor_logs: ln s(z) and d ln s/dz of tensors; the slope may be a scalar.
        source: where it is defined.
        place: where it stands in lists.
        monotone: a larger logit always has the larger score, so that selection without a bias
            follows the logits.
        constant_free: adding one number to every logit leaves p unchanged.
        one: the logit whose score is 1; infinite where none is.
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
    constant_free: bool = False
    one: float = math.inf


@functools.cache
def all_scorings() -> Mapping[str, Scoring]:
    """Every scoring by name."""
    return {found.name: found for found in scoring_modules()}


@functools.cache
def names_in_configs() -> Mapping[str, str]:
    """A scoring's name by what configs call it; another one is refused by name."""
    return {said: found.name for found in all_scorings().values() for said in found.config_names}


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
