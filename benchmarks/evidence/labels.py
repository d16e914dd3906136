"""The outcome of a checkpoint, measured on label tokens that are used for nothing else.

Legend: N sequences, B a batch of them, E experts, K chosen per token.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.evidence.faults import RouterTap, loads
from benchmarks.evidence.models import loss_tokens, losses
from benchmarks.evidence.tasks import Split

BATCH = 64
# A layer is collapsed where the entropy of its load, on the scale from the least that K distinct
# experts can have (ln K) to the most (ln E), is under this, or so many of its experts are dead.
COLLAPSE_ENTROPY, DEAD_SHARE, DEAD_LOAD = 0.7, 0.25, 0.05


@dataclass(frozen=True)
class Outcome:
    """A checkpoint on the label split; `loss` is None where it is not finite.

    `load_entropy` is of the worst layer, rescaled; `dead_share` the largest share of a layer's
    experts under 5% of the fair load.
    """

    step: int
    loss: float | None
    validation: float | None
    tokens: int
    load_entropy: float
    dead_share: float

    @property
    def collapsed(self) -> bool:
        """Whether a layer is."""
        return self.load_entropy < COLLAPSE_ENTROPY or self.dead_share >= DEAD_SHARE

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "collapsed": self.collapsed}


@torch.no_grad()
def measure(
    step: int, model: nn.Module, taps: list[RouterTap], experts: int, labels: Split,
    validation: Split,
) -> Outcome:  # fmt: skip
    """The loss on both splits, and what the routers dispatch on the labels."""
    training = model.training
    model.eval()
    try:
        counts, total, tokens = _pass(model, taps, experts, labels)
        _, of_validation, validation_tokens = _pass(model, taps, experts, validation)
    finally:
        model.train(training)
    entropies = [load_entropy(c, tap.top_k) for c, tap in zip(counts, taps, strict=True)]
    return Outcome(
        step=step,
        loss=_finite(total / tokens),
        validation=_finite(of_validation / validation_tokens),
        tokens=int(counts[0].sum()) // taps[0].top_k,
        load_entropy=min(entropies),
        dead_share=max(float((c < DEAD_LOAD * c.mean()).mean()) for c in counts),
    )


def load_entropy(count_E: np.ndarray, top_k: int) -> float:
    """Entropy of the load, 0 where K experts take all and 1 at balance."""
    share_E = count_E / count_E.sum()
    entropy = -float(sum(p * math.log(p) for p in share_E if p > 0))
    return (entropy - math.log(top_k)) / (math.log(len(share_E)) - math.log(top_k))


def _pass(
    model: nn.Module, taps: list[RouterTap], experts: int, split: Split
) -> tuple[list[np.ndarray], float, int]:
    counts = [np.zeros(experts) for _ in taps]
    total = 0.0
    for start in range(0, len(split), BATCH):
        inputs, labels = split.inputs[start : start + BATCH], split.labels[start : start + BATCH]
        total += float(losses(model, inputs, labels).double().sum())
        for count_E, tap in zip(counts, taps, strict=True):
            count_E += loads(tap, experts).numpy()
    return counts, total, loss_tokens(model, split.labels)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
