r"""The exact Fisher of the routing distribution with respect to each logit.

For p = s(z) / Σ s(z) only the diagonal is needed:
:math:`I_e = (d \ln s_e / dz_e)^2 \, p_e (1 - p_e)`, in squared nats per squared logit.
softmax has d ln s/dz = 1; sigmoid 1 − s. One sampled expert a token; no loss is involved.

Legend: N tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from moegeo_cli.errors import UnsupportedArchitectureError


def _softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, torch.ones((), dtype=logits.dtype, device=logits.device)


def _sigmoid(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.logsigmoid(logits), torch.sigmoid(-logits)


def _sqrt_softplus(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    softplus = F.softplus(logits, threshold=40.0)
    # For very negative z, softplus(z) -> e^z and the ratio -> 1; the floor keeps 0/0 away.
    floor = torch.finfo(logits.dtype).tiny
    ratio = torch.where(
        logits < -30, torch.ones_like(logits), torch.sigmoid(logits) / softplus.clamp_min(floor)
    )
    log_softplus = torch.where(logits < -30, logits, softplus.clamp_min(floor).log())
    return 0.5 * log_softplus, 0.5 * ratio


# scoring -> the scores s of logits z
SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: F.softplus(logits).sqrt(),
}
# scoring -> function giving (ln s, d ln s / dz)
LOG_SCORES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "sqrt_softplus": _sqrt_softplus,
}


def categorical_information(logits_NE: torch.Tensor, scoring: str) -> torch.Tensor:
    """Fisher information of the routing distribution about each logit.

    Args:
        logits_NE: router logits, shape (N, E).
        scoring: a name in `LOG_SCORES`.

    Returns:
        Shape (N, E), float32, per token (not averaged).

    Raises:
        UnsupportedArchitectureError: an unknown scoring.

    Source: the diagonal of E[∇ln p ∇ln pᵀ]; docs/reference/fisher.md.
    """
    if scoring not in LOG_SCORES:
        raise UnsupportedArchitectureError(
            f"the scoring function {scoring!r} is not known",
            found=f"known: {', '.join(LOG_SCORES)}",
        )
    # float64: in float32 a sharp router's 1 - p would keep only a few digits
    wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
    log_score, slope = LOG_SCORES[scoring](logits_NE.detach().to(wide))
    p = torch.softmax(log_score, dim=-1)
    return (slope.square() * p * (1 - p)).float()
