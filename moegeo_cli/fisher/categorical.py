r"""The exact Fisher of the routing distribution with respect to each logit.

For p = s(z) / Σ s(z) only the diagonal is needed:
:math:`I_e = (d \ln s_e / dz_e)^2 \, p_e (1 - p_e)`, in squared nats per squared logit.
softmax has d ln s/dz = 1; sigmoid 1 − s. One sampled expert a token; no loss is involved.

Legend: N tokens, E experts.
"""

from __future__ import annotations

import torch

from moegeo_cli.scorings import find_scoring


def categorical_information(logits_NE: torch.Tensor, scoring: str) -> torch.Tensor:
    """Fisher information of the routing distribution about each logit.

    Args:
        logits_NE: router logits, shape (N, E).
        scoring: its name.

    Returns:
        Shape (N, E), float32, per token (not averaged).

    Raises:
        UnsupportedArchitectureError: an unknown scoring.

    Source: the diagonal of E[∇ln p ∇ln pᵀ]; docs/reference/fisher.md.
    """
    # float64: in float32 a sharp router's 1 - p would keep only a few digits
    wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
    log_score, slope = find_scoring(scoring).tensor_logs(logits_NE.detach().to(wide))
    p = torch.softmax(log_score, dim=-1)
    return (slope.square() * p * (1 - p)).float()
