"""The scoring s(z) = e^z; p is then the softmax of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moegeo_cli.scorings import Scoring

if TYPE_CHECKING:
    import torch


def _tensor_logs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, logits.new_ones(())


SCORING = Scoring(
    "softmax",
    config_names=("softmax",),
    score=np.exp,
    log_score=lambda z: z,
    log_slope=np.ones_like,
    tensor_score=lambda logits: logits.softmax(-1),
    tensor_logs=_tensor_logs,
    source="Shazeer et al. (2017), without noise",
    place=0,
    shift_invariant=True,
)
