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
    """The routing distributions of some tokens, computed once for all that is summed of them.

    float64: in float32 a sharp router's 1 - p would keep only a few digits.

    Args:
        logits_NE: router logits, shape (N, E).
        scoring: its name.
        buffers: where it is computed: the distributions before in them are lost.

    Attributes:
        log_NE: ln s less the token's largest, so at most 0.
        root_NE: √p, of length 1.
        p_NE: p, before top-k and renormalisation.
        highest_N: the largest ln s.
        log_total_N: ln Σ s, less `highest_N`.
        slope: d ln s / dz, shape (N, E) or () where it is 1.

    Raises:
        UnsupportedArchitectureError: an unknown scoring.
    """

    def __init__(
        self, logits_NE: torch.Tensor, scoring: str, buffers: Buffers | None = None
    ) -> None:
        self.buffers = buffers or Buffers()
        self.wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
        own_NE = self.buffers.take("log", logits_NE, self.wide).copy_(logits_NE.detach())
        log_NE, self.slope = find_scoring(scoring).tensor_logs(own_NE)
        highest_N1 = log_NE.amax(-1, keepdim=True)
        self.log_NE = log_NE.sub_(highest_N1)
        root_NE = self.buffers.take("root", logits_NE, self.wide)
        self.root_NE = torch.mul(self.log_NE, 0.5, out=root_NE).exp_()
        length_N1 = torch.linalg.vector_norm(root_NE, dim=-1, keepdim=True)
        root_NE.div_(length_N1)
        p_NE = self.buffers.take("p", logits_NE, self.wide)
        self.p_NE = torch.mul(root_NE, root_NE, out=p_NE)
        self.highest_N = highest_N1[:, 0]
        self.log_total_N = length_N1[:, 0].log().mul_(2.0)

    def information(self) -> torch.Tensor:
        """Fisher information about each logit, per token: shape (N, E), float32."""
        p_NE, found_NE = self.p_NE, self.buffers.take("spare", self.p_NE, self.wide)
        torch.addcmul(p_NE, p_NE, p_NE, value=-1.0, out=found_NE)
        if self.slope.ndim:
            found_NE.mul_(self.slope).mul_(self.slope)
        return found_NE.float()


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
