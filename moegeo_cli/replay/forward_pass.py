"""One pass of a probe through a model: routers tapped, loss taken, Fisher sums fed.

What a pass costs beyond the bare model: one matrix product a router and Fisher kind, and sums over
the batch's router logits.

Legend: B sequences of a batch, N real tokens of a batch, T of the probe, S sequences.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.errors import (
    MoegeoError,
    ProbeError,
    UnsupportedArchitectureError,
)
from moegeo_cli.probes import Sample
from moegeo_cli.replay.batches import count_losses, plan_batches
from moegeo_cli.replay.calls import CallCount, Trial, make_trial
from moegeo_cli.replay.feeding import (
    AnyBatch,
    batch_losses,
    call_inputs,
    find_rows,
    list_batches,
    take_sides,
)
from moegeo_cli.replay.forms import form_of
from moegeo_cli.replay.gradients import LossGradients
from moegeo_cli.replay.out_of_memory import is_out_of_memory
from moegeo_cli.replay.plan import BatchRows, Plan, Replay, RouterTrace, make_traces
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.replay.reading import RouterCall, RouterTap, verify_call
from moegeo_cli.replay.recording import CallRecorder
from moegeo_cli.replay.sharing import share_batches
from moegeo_cli.routers.finding import Router

# What the grouped product of experts says of rows that are not 16 bytes wide.
UNGROUPED = "strides should be multiple of 16 bytes"
CANCELLED = (
    "the loss gives {} routers no gradient beyond rounding, as where a token's experts are equal "
    "(an upcycled start): it was set to 0, and unselected experts were not checked there"
)


class _EndOfRouters(BaseException):  # no handler in a model's code may take it for an error
    """Raised in the last router's hook where nothing beyond it is needed."""


class Pass:
    """One attempt at a pass, with one batch size."""

    ranks: Ranks | None = None

    def __init__(
        self,
        model: nn.Module,
        routers: list[Router],
        ids: list[np.ndarray] | list[Sample],
        labels: list[np.ndarray | None],
        plan: Plan,
        batch_size: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.model, self.routers, self.plan, self.progress = model, routers, plan, progress
        self.recomputing = False
        self.form = form_of(model)
        self.stops_early = not plan.needs_loss and not self.form.runs_to_end
        self.ids, self.labels, self.batch_size = ids, labels, batch_size
        self.lengths = np.array([len(i) for i in ids], dtype=np.int64)
        self.device = routers[0].weight_ED.device
        self.groups = int(plan.groups_S.max()) + 1
        self.gradients = LossGradients(plan)
        tokens = int(self.lengths.sum())
        self.traces = make_traces(routers, plan, tokens, self.groups)
        if plan.splits_S is not None:
            take_sides(model, self.traces, self.lengths, plan.splits_S)
        self.loss_S = np.zeros(len(ids))
        self.calls = CallCount(self.traces, tokens)
        self.recorder = CallRecorder(plan, tokens, self.calls)
        self.trial: Trial | None = None  # where the small batch is at work
        self.fault: MoegeoError | None = None  # raised in a hook, within the model's own code

    def run(self) -> Replay:
        """All batches."""
        splits_S = self.plan.splits_S
        plan = plan_batches(
            self.lengths.tolist(),
            self.batch_size,
            mixed=self.plan.mixed_lengths,
            tokens=self.plan.batch_tokens,
            splits=None if splits_S is None else splits_S.tolist(),
        )
        # Rows of a group side by side, so that a group's Fisher sum is one matrix product.
        plan = [sorted(members, key=lambda s: (self.plan.groups_S[s], s)) for members in plan]
        shares = [plan]
        if self.ranks is not None and self.ranks.share_probe:
            shares = share_batches(plan, self.lengths.tolist(), self.ranks.world)
            plan = shares[self.ranks.rank]
        self.own_tokens = sum(int(self.lengths[members].sum()) for members in plan)
        with self._hooks(), self._logit_gradients():
            if plan and not self.form.recorded:
                self._try(make_trial(self.model, self.ids, self.plan, self.device))
            self._batches(list_batches(self.model, self.ids, self.labels, plan, self.device))
        sequence_T = np.repeat(np.arange(len(self.ids)), self.lengths)
        self.calls.close(self.traces, np.isin(sequence_T, [s for own in plan for s in own]))
        return Replay(
            traces=self.traces,
            sequence_T=sequence_T,
            loss_S=self.loss_S if self.plan.needs_loss else None,
            loss_tokens_S=count_losses(self.ids, self.labels),
            batch_size=self.batch_size,
            unselected=self.gradients.unselected,
            notes=[CANCELLED.format(len(self.gradients.cancelled))]
            if self.gradients.cancelled
            else [],
            shares=shares,
        )

    def _try(self, trial: Trial) -> None:
        """Replay a small batch twice, through the whole model.

        Raises:
            UnsupportedArchitectureError: a router is called twice, or chooses at random.
        """
        with torch.no_grad():
            for again in (False, True):
                with self._trying(trial, again=again):
                    self._forward(call_inputs(self.model, trial.batch, trial.plan))

    @contextlib.contextmanager
    def _trying(self, trial: Trial, *, again: bool) -> Iterator[None]:
        """Meanwhile routers are called for the small batch, of which nothing is kept."""
        trial.begin(again=again)
        self.trial, self.recorder.inputs.idle = trial, True
        try:
            yield
        finally:
            self.trial, self.recorder.inputs.idle = None, False

    def _batches(self, batches: Iterable[AnyBatch]) -> None:
        """One batch after another, each through the whole model."""
        for batch in batches:
            self._step(batch)
            if self.progress:
                self.progress(batch.tokens * int(self.lengths.sum()) // self.own_tokens)

    def _step(self, batch: AnyBatch) -> None:
        """One batch, forward and, where a loss is needed, backward."""
        self._begin(batch, find_rows(batch, self.lengths, self.plan))
        if self.plan.needs_loss and batch.targets is not None:
            losses = self._losses(
                batch, self._forward(call_inputs(self.model, batch, self.plan)).logits
            )
            self.gradients.backward(losses, self.rows, self.pending)
        else:
            with contextlib.suppress(_EndOfRouters):
                self._forward(call_inputs(self.model, batch, self.plan))
        self.pending.clear()

    def _begin(self, batch: AnyBatch, rows: BatchRows) -> None:
        """From here on, routers are called for the tokens of this batch."""
        self.rows, self.positions, self.samples = rows, batch.positions, len(batch.sequence_B)
        self.pending: list[tuple[RouterTrace, RouterCall]] = []
        self.calls.begin()

    def _losses(self, batch: AnyBatch, logits: torch.Tensor) -> torch.Tensor:
        """The loss of every position, kept by sequence as well."""
        losses = batch_losses(batch, logits, self.plan)
        by_sequence = losses.detach().double().reshape(len(batch.sequence_B), -1).sum(1)
        self.loss_S[batch.sequence_B.cpu().numpy()] = by_sequence.cpu().numpy()
        return losses

    def _forward(self, inputs: dict[str, Any]) -> Any:
        """The model's own pass.

        Raises:
            UnsupportedArchitectureError: the model's own code fails.
            MoegeoError: what a hook raised, also where the model's own code caught it.
        """
        self.fault = None
        try:
            output = self.model(**inputs)
        except (MoegeoError, MemoryError):
            raise
        except Exception as error:
            if self.fault is not None:
                raise self.fault from error
            if is_out_of_memory(error) or UNGROUPED in str(error):
                raise
            raise UnsupportedArchitectureError(
                f"the forward pass of {type(self.model).__name__} fails in the model's own code",
                found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                hint="check config.json, and that transformers itself can run this checkpoint",
            ) from error
        if self.fault is not None:
            raise self.fault
        return output

    @contextlib.contextmanager
    def _logit_gradients(self) -> Iterator[None]:
        """Let gradient reach the router logits, and no parameter but the routers' own."""
        if not self.plan.needs_loss:
            with torch.no_grad():
                yield
            return
        weights = [router.weight_ED for router in self.routers]
        for weight in weights:
            weight.requires_grad_(True)
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        taps: list[Any] = [RouterTap(t.router, self._on_forward(t)) for t in self.traces]
        taps += self.recorder.inputs.hook(self.traces, lambda trace: self.rows.of_side(trace.side))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for tap in taps:
                tap.remove()

    def _on_forward(self, trace: RouterTrace) -> Callable[[RouterCall], None]:
        def take(call: RouterCall) -> None:
            try:
                self._take(trace, call)
            except MoegeoError as error:
                self.fault = self.fault or error  # the model's own code may catch it
                raise

        return take

    def _take(self, trace: RouterTrace, call: RouterCall) -> None:
        """One call of a router."""
        if self.trial is not None:
            self.trial.take(trace.router, call)
            return
        self.calls.count(trace.router)
        if self.recomputing:  # seen before: only its gradient is of interest
            self.pending.append((trace, call))
            return
        trace.calls += 1
        trace.observed = call.observed
        self._check_positions(trace, len(call.x_ND))
        if trace.calls == 1:
            trace.problem = verify_call(trace.router, call)
        if trace.problem is None:
            self.recorder.record(trace, call, self.rows.of_side(trace.side))
        if self.plan.needs_loss:
            self.pending.append((trace, call))
        if self.stops_early and self.calls.called == len(self.traces):
            raise _EndOfRouters

    def _check_positions(self, trace: RouterTrace, seen: int) -> None:
        """Every position of a batch is a row of the router's input, or rows would be misread."""
        router, rows = trace.router, self.rows.of_side(trace.side)
        own = self.positions
        if self.rows.sides:  # a decoder that has nothing to predict still sees its start token
            own = len(rows.probe_N) or (self.samples if rows.flat is not None else 0)
        if seen == own:
            return
        if self.rows.sides:
            raise UnsupportedArchitectureError(
                f"the router {router.path} sees {seen:,} tokens of a side that has {own:,}",
                hint="report this model type",
            )
        each, rest = divmod(seen, self.samples)
        samples = isinstance(self.ids[0], Sample) and not rest
        raise ProbeError(
            f"the router {router.path} sees {seen:,} tokens of a batch that has {self.positions:,}",
            found=f"{self.samples} samples of {self.positions // self.samples} positions",
            hint=f"if every router sees so many, say positions = {each} in the probe file's "
            "metadata; else choose --layers that see equally many"
            if samples
            else "moegeo measures routers that see every token once",
        )
