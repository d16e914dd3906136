"""The scoring s(z) = √ln(1 + e^z), for each expert independently."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moegeo_cli.scorings import Scoring
from moegeo_cli.scorings.sigmoid import sigmoid

if TYPE_CHECKING:
    import torch

LINEAR = 40.0  # above it, softplus(z) equals z in float64


def _softplus(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z))))


def _log_softplus(z: np.ndarray) -> np.ndarray:
    # for very negative z, ln softplus(z) = z − e^z / 2 up to rounding
    low = np.minimum(z, -30.0)
    return np.asarray(
        np.where(z < -30.0, low - 0.5 * np.exp(low), np.log(_softplus(np.maximum(z, -30.0))))
    )


def _log_slope(z: np.ndarray) -> np.ndarray:
    high = np.maximum(z, -30.0)
    return np.asarray(np.where(z < -30.0, 1.0, sigmoid(high) / _softplus(high)))


def _tensor_score(logits: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import softplus

    return softplus(logits, threshold=LINEAR).sqrt()


def _tensor_logs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    softplus = torch.nn.functional.softplus(logits, threshold=LINEAR)
    # For very negative z, softplus(z) -> e^z and the ratio -> 1; the floor avoids 0/0.
    floor = torch.finfo(logits.dtype).tiny
    ratio = torch.where(
        logits < -30, torch.ones_like(logits), torch.sigmoid(logits) / softplus.clamp_min(floor)
    )
    log_softplus = torch.where(logits < -30, logits, softplus.clamp_min(floor).log())
    return 0.5 * log_softplus, 0.5 * ratio


SCORING = Scoring(
    "sqrt_softplus",
    config_names=("sqrtsoftplus",),
    score=lambda z: np.sqrt(_softplus(z)),
    log_score=lambda z: 0.5 * _log_softplus(z),
    log_slope=lambda z: 0.5 * _log_slope(z),
    tensor_score=_tensor_score,
    tensor_logs=_tensor_logs,
    source="DeepSeek-V4's `sqrtsoftplus`, in transformers",
    place=2,
    unit_logit=math.log(math.e - 1.0),
)
