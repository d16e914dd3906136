"""The scoring s(z) = 1 / (1 + e^−z), for each expert independently."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moegeo_cli.scorings import Scoring

if TYPE_CHECKING:
    import torch


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−z), without overflow."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


def _log_sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.minimum(z, 0.0) - np.log1p(np.exp(-np.abs(z))))


def _tensor_logs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.functional import logsigmoid

    return logsigmoid(logits), (-logits).sigmoid()


SCORING = Scoring(
    "sigmoid",
    config_names=("sigmoid",),
    score=sigmoid,
    log_score=_log_sigmoid,
    log_slope=lambda z: sigmoid(-z),
    tensor_score=lambda logits: logits.sigmoid(),
    tensor_logs=_tensor_logs,
    source="DeepSeek-V3 (arXiv 2412.19437), equation 15",
    place=1,
)
