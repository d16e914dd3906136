r"""The exact Fisher of the routing distribution with respect to each logit.

For p = s(z) / Σ s(z) only the diagonal is needed:
:math:`I_e = (d \ln s_e / dz_e)^2 \, p_e (1 - p_e)`, in squared nats per squared logit.
softmax has d ln s/dz = 1; sigmoid 1 − s. One sampled expert a token; no loss is involved.

Legend: N tokens, E experts.
"""

from __future__ import annotations

import torch

from moegeo_cli.fisher.buffers import Buffers
from moegeo_cli.scorings import find_scoring


class Distribution:
    """The routing distributions of a batch's tokens, computed once for every sum over them.

    Arrays of N × E are float32, the logits' own precision; numbers of one token are float64. Every
    score is divided by the token's largest, which becomes exactly 1. `rest_N` sums the others, so
    that 1 − p keeps its digits down to 1e-16. Relative errors are below 2e-7 · (2 + |ln p|).

    Args:
        logits_NE: router logits, shape (N, E).
        scoring: the scoring's name.
        buffers: memory to compute in. Distributions that were computed in it before are lost.

    Attributes:
        log_NE: ln s less the token's largest, at most 0.
        score_NE: s over the token's largest, at most 1.
        rest_N: Σ of `score_NE` without the largest.
        highest_N: the largest ln s.
        log_total_N: ln Σ of `score_NE`.
        slope: d ln s / dz, shape (N, E), or () where it is 1.

    Raises:
        UnsupportedArchitectureError: an unknown scoring.
    """

    def __init__(
        self, logits_NE: torch.Tensor, scoring: str, buffers: Buffers | None = None
    ) -> None:
        self.buffers = buffers or Buffers()
        self.wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
        logs_NE, self.slope = find_scoring(scoring).tensor_logs(logits_NE.detach().float())
        highest_N1 = logs_NE.amax(1, keepdim=True)
        log_NE = self.buffers.take("log", logits_NE, torch.float32)
        self.log_NE = torch.sub(logs_NE, highest_N1, out=log_NE)
        score_NE = self.buffers.take("score", logits_NE, torch.float32)
        self.score_NE = torch.exp(log_NE, out=score_NE)
        wide_NE = self.buffers.take("wide", logits_NE, self.wide).copy_(score_NE)
        self.rest_N = wide_NE.sum(1).sub_(1.0).clamp_min_(0.0)
        self.highest_N = highest_N1[:, 0].to(self.wide)
        self.log_total_N = self.rest_N.log1p()

    def probabilities(self, name: str = "p") -> torch.Tensor:
        """p, before top-k and renormalisation: shape (N, E), float32.

        Args:
            name: of the buffer that it lies in.
        """
        share_N1 = self.rest_N.add(1.0).reciprocal_().float()[:, None]
        out = self.buffers.take(name, self.log_NE, torch.float32)
        return torch.mul(self.score_NE, share_N1, out=out)

    def information(self) -> torch.Tensor:
        """Fisher information about each logit, per token: shape (N, E), float32."""
        share_N1 = self.rest_N.add(1.0).reciprocal_().square_().float()[:, None]
        # s (Σs − s) / (Σs)², where Σs − s = (1 − s) + rest loses no digit at the largest s
        found_NE = self.buffers.take("spare", self.log_NE, torch.float32)
        torch.neg(self.score_NE, out=found_NE).add_(1.0).add_(self.rest_N.float()[:, None])
        found_NE.mul_(self.score_NE).mul_(share_N1)
        if self.slope.ndim:
            found_NE.mul_(self.slope).mul_(self.slope)
        return found_NE


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
    return Distribution(logits_NE, scoring).information()
