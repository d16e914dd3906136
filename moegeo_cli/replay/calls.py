"""Check that each router is called once per token, and that its routing is repeatable.

Every metric needs exactly one row per token and router. A router that is called twice for a batch
(looped depth, a shared block) is refused, because sums would mix both calls. A router that is not
called for some tokens is not measured.

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

TRIAL_TOKENS = 64  # tokens of the small batch that is replayed twice
# Largest allowed difference of two runs, relative to the largest value. On a CPU there is none;
# accelerators may sum in another order.
REPEATED, REPEATED_HALF = 1e-4, 0.02
FLIPPED = 0.05  # share of tokens whose near-ties such rounding may decide differently


class CallCount:
    """Counts the calls of each router: for the current batch, and for every token of the probe.

    Args:
        traces: the traces of the routers.
        tokens: T.
    """

    def __init__(self, traces: Sequence[RouterTrace], tokens: int) -> None:
        self._of_batch: Counter[str] = Counter()
        self._of_token = {t.router.path: np.zeros(tokens, dtype=np.uint8) for t in traces}

    def begin(self) -> None:
        """Start a batch, or a layer of it."""
        self._of_batch.clear()

    def count(self, router: Router) -> None:
        """Count a call of a router.

        Raises:
            UnsupportedArchitectureError: the router was already called for this batch.
        """
        self._of_batch[router.path] += 1
        if self._of_batch[router.path] > 1:
            raise called_again(router)

    @property
    def called(self) -> int:
        """Number of routers that were called for the current batch."""
        return len(self._of_batch)

    def measured(self, router: Router, probe_N: np.ndarray) -> None:
        """Count a measured call for these rows of the probe."""
        self._of_token[router.path][probe_N] += 1

    def close(self, traces: Iterable[RouterTrace], rows_T: np.ndarray) -> None:
        """Set `problem` of each router that was not called exactly once for every token.

        Args:
            traces: the traces of the routers; changed in place.
            rows_T: mask of the probe's rows that this process replayed.
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
    """A small batch that is replayed twice, to check that routing is deterministic.

    Args:
        batch: the tokens.
        plan: the plan of the pass, adapted to this batch.
    """

    def __init__(self, batch: AnyBatch, plan: Plan) -> None:
        self.batch, self.plan = batch, plan
        self._first: dict[str, RouterCall] = {}
        self._calls: Counter[str] = Counter()
        self._again = False

    def begin(self, *, again: bool) -> None:
        """Start a run of the model, or of one of its layers; `again` for the second run."""
        self._calls.clear()
        self._again = again
        if not again:
            self._first.clear()

    def take(self, router: Router, call: RouterCall) -> None:
        """Record a call of a router, or compare it with that of the first run.

        Raises:
            UnsupportedArchitectureError: the router was called twice, or the second run differs.
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
                "other experts when the same tokens are replayed",
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
    """A trial batch: the first tokens of a sequence of the probe, or its shortest sample.

    Args:
        model: the model, for the dtype of samples.
        ids: the token ids of each sequence, or the samples.
        plan: the plan of the pass.
        device: the device of the model.
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
    """The error for a router that is called twice for one batch."""
    return UnsupportedArchitectureError(
        f"the router {router.path} is called more than once for the same tokens",
        found=f"{type(router.parent).__name__} runs again in one pass: looped depth, a shared "
        "block, or a second call of the router",
        hint="moegeo measures routers that see every token once; --layers can leave this one out",
    )


def _differ(first: RouterCall, again: RouterCall) -> str | None:
    """How two calls differ by more than rounding, in words; None if they agree."""
    before = first.logits_NE.reshape(-1, first.logits_NE.shape[-1])
    after = again.logits_NE.detach().reshape(-1, again.logits_NE.shape[-1])
    if before.shape != after.shape:
        return f"logits of {len(after):,} tokens, {len(before):,} before"
    half = min(before.dtype.itemsize, first.x_ND.dtype.itemsize) < 4
    share = REPEATED_HALF if half else REPEATED
    before, after = before.float(), after.float()
    finite = torch.isfinite(before)
    if bool((finite != torch.isfinite(after)).any()):
        return "some logits are finite in one of two runs only"
    before, after = before.where(finite, 0.0), after.where(finite, 0.0)
    scale = float(before.abs().max().clamp_min(1e-30))
    off = float((before - after).abs().max()) / scale
    if off > share:
        return f"logits differ by {off:.2g} of the largest between two runs of the same tokens"
    if first.selected_NK.shape != again.selected_NK.shape:
        return "another number of chosen experts"
    # Experts are compared by their logits, because a tie may be decided either way.
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
