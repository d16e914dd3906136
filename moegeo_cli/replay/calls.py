"""How often a pass calls each router, and whether a second call of the same tokens says the same.

Every number rests on one row a token and router. A router that is called twice for a batch
(looped depth, a shared block) would add both calls in one sum and keep the last in another, so
it is refused. One that is not called for some tokens is not measured.

Legend: N tokens, T of the probe, E experts, K experts chosen per token.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.probes import Sample
from moegeo_cli.replay.feeding import AnyBatch, list_batches
from moegeo_cli.replay.plan import Plan, RouterTrace
from moegeo_cli.replay.reading import RouterCall
from moegeo_cli.routers.finding import Router

TRIAL_TOKENS = 64  # of the small batch that is replayed twice
# Two runs of one computation differ by rounding at most: share of the largest value. On a CPU
# they do not differ; accelerators may add up in another order.
REPEATED, REPEATED_HALF = 1e-4, 0.02
FLIPPED = 0.05  # share of tokens at which that rounding may decide between near-ties


class CallCount:
    """Calls of each router: of the batch at work, and of every token of the probe.

    Args:
        traces: of the routers.
        tokens: T.
    """

    def __init__(self, traces: Sequence[RouterTrace], tokens: int) -> None:
        self._of_batch: Counter[str] = Counter()
        self._of_token = {t.router.path: np.zeros(tokens, dtype=np.uint8) for t in traces}

    def begin(self) -> None:
        """A batch, or a layer of it, begins."""
        self._of_batch.clear()

    def count(self, router: Router) -> None:
        """A router is called.

        Raises:
            UnsupportedArchitectureError: once more for the same batch.
        """
        self._of_batch[router.path] += 1
        if self._of_batch[router.path] > 1:
            raise called_again(router)

    @property
    def called(self) -> int:
        """How many routers were called for the batch at work."""
        return len(self._of_batch)

    def measured(self, router: Router, probe_N: np.ndarray) -> None:
        """The rows of the probe that a call was measured for."""
        self._of_token[router.path][probe_N] += 1

    def close(self, traces: Iterable[RouterTrace], rows_T: np.ndarray) -> None:
        """Say of each router that did not meet every token once why it is not measured.

        Args:
            traces: of the routers; `problem` is set.
            rows_T: True at the probe's rows that this process replayed.
        """
        for trace in traces:
            own_T = rows_T
            if trace.rows is not None:  # one side of an encoder and a decoder
                own_T = np.zeros_like(rows_T)
                own_T[trace.rows] = rows_T[trace.rows]
            counts = self._of_token[trace.router.path][own_T]
            if trace.problem is not None or (counts == 1).all():
                continue
            missed, twice = int((counts == 0).sum()), int((counts > 1).sum())
            trace.problem = (
                "the router was not called"
                if missed == len(counts)
                else f"the router was not called for {missed:,} of {len(counts):,} tokens"
                if missed
                else f"the router was called more than once for {twice:,} tokens"
            )


class Trial:
    """A small batch that is replayed twice, to learn whether routing is a function of its tokens.

    Args:
        batch: the tokens.
        plan: as the pass has it, for this batch.
    """

    def __init__(self, batch: AnyBatch, plan: Plan) -> None:
        self.batch, self.plan = batch, plan
        self._first: dict[str, RouterCall] = {}
        self._calls: Counter[str] = Counter()
        self._again = False

    def begin(self, *, again: bool) -> None:
        """A run of the model, or of one of its layers, begins."""
        self._calls.clear()
        self._again = again
        if not again:
            self._first.clear()

    def take(self, router: Router, call: RouterCall) -> None:
        """A router was called.

        Raises:
            UnsupportedArchitectureError: twice for one batch, or with another outcome than before.
        """
        self._calls[router.path] += 1
        if self._calls[router.path] > 1:
            raise called_again(router)
        if not self._again:
            self._first[router.path] = dataclasses.replace(
                call, logits_NE=call.logits_NE.detach().clone()
            )
            return
        first = self._first.get(router.path)
        found = "it was not called the first time" if first is None else _differ(first, call)
        if found is not None:
            raise UnsupportedArchitectureError(
                f"routing is random in evaluation mode: the router {router.path} chooses "
                "otherwise when the same tokens are replayed",
                found=found,
                hint="switch noise and sampling off in evaluation mode (model.eval(), where "
                "self.training is False); otherwise no measurement can be repeated",
            )


def make_trial(
    model: nn.Module,
    ids: list[np.ndarray] | list[Sample],
    plan: Plan,
    device: torch.device,
) -> Trial:
    """The first tokens of a probe's sequence; of samples the shortest, whole.

    Args:
        model: for the dtype of samples.
        ids: the token ids of each sequence; or samples.
        plan: of the pass.
        device: where the model computes.
    """
    lengths = [len(own) for own in ids]
    enough = [s for s, n in enumerate(lengths) if n >= min(TRIAL_TOKENS, max(lengths))]
    place = min(enough, key=lambda s: (lengths[s], s))
    own = ids[place]
    if isinstance(own, Sample):
        [batch] = list_batches(model, [own], [None], [[0]], device)
        return Trial(batch, plan)
    own = own[:TRIAL_TOKENS]
    split = None if plan.splits_S is None else np.array([max(1, len(own) // 2)])
    [batch] = list_batches(model, [own], [None], [[0]], device)
    return Trial(batch, dataclasses.replace(plan, splits_S=split))


def called_again(router: Router) -> UnsupportedArchitectureError:
    """A router that one batch calls twice."""
    return UnsupportedArchitectureError(
        f"the router {router.path} is called more than once for the same tokens",
        found=f"{type(router.parent).__name__} runs again in one pass: looped depth, a shared "
        "block, or a second call of the router",
        hint="moegeo measures routers that see every token once; --layers can leave this one out",
    )


def _differ(first: RouterCall, again: RouterCall) -> str | None:
    """What differs between two calls beyond rounding; None where they agree."""
    before = first.logits_NE.reshape(-1, first.logits_NE.shape[-1])
    after = again.logits_NE.detach().reshape(-1, again.logits_NE.shape[-1])
    if before.shape != after.shape:
        return f"logits of {len(after):,} tokens, {len(before):,} before"
    half = min(before.dtype.itemsize, first.x_ND.dtype.itemsize) < 4
    share = REPEATED_HALF if half else REPEATED
    before, after = before.float(), after.float()
    finite = torch.isfinite(before)
    if bool((finite != torch.isfinite(after)).any()):
        return "logits that are finite in one of two runs"
    before, after = before.where(finite, 0.0), after.where(finite, 0.0)
    scale = float(before.abs().max().clamp_min(1e-30))
    off = float((before - after).abs().max()) / scale
    if off > share:
        return f"logits differ by {off:.2g} of the largest between two runs of the same tokens"
    if first.selected_NK.shape != again.selected_NK.shape:
        return "another number of chosen experts"
    # Experts are compared by their logits: a tie may be decided either way.
    chosen = [
        logits.gather(1, call.selected_NK.clamp_min(0)).where(call.selected_NK >= 0, -torch.inf)
        for logits, call in ((before, first), (after, again))
    ]
    apart_NK = chosen[0].sort(1).values != chosen[1].sort(1).values
    near_NK = (chosen[0].sort(1).values - chosen[1].sort(1).values).abs() <= share * scale
    flipped = float((apart_NK & ~near_NK).any(1).float().mean()) if len(apart_NK) else 0.0
    if flipped > (FLIPPED if off > 0 else 0.0):
        return f"other experts at {flipped:.0%} of {len(apart_NK):,} tokens in a second run"
    return None
