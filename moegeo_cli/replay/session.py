"""One pass of a probe through a model: routers tapped, loss taken, Fisher sums fed.

What a pass costs beyond the bare model: one matrix product a router and Fisher kind, and
the router logits kept until the pass is over.

Legend: B sequences of a batch, N real tokens of a batch, T of the probe, S sequences,
D router input width, E experts, K experts chosen per token, G groups of sequences.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.errors import MoegeoError, ResourceError, UnsupportedArchitectureError
from moegeo_cli.fisher.categorical import categorical_information
from moegeo_cli.replay.batches import IGNORED_LABEL, Batch, make_batches, plan_batches
from moegeo_cli.replay.gradients import LossGradients
from moegeo_cli.replay.memory import is_out_of_memory
from moegeo_cli.replay.pairs import SOURCE, align_logits, side_of, split_inputs
from moegeo_cli.replay.plan import CATEGORICAL, BatchRows, Plan, Replay, RouterTrace, make_traces
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.replay.reading import RouterCall, RouterTap, verify_call
from moegeo_cli.replay.routers import Router
from moegeo_cli.replay.sharing import collect, share_batches

# What the grouped product of experts says of rows that are not 16 bytes wide.
UNGROUPED = "strides should be multiple of 16 bytes"
EAGER = "experts computed one by one: their width does not suit the grouped product"


class _EndOfRouters(Exception):  # noqa: N818 - a signal, not an error
    """Raised in the last router's hook where nothing beyond it is needed."""


def replay(
    model: nn.Module,
    routers: list[Router],
    ids: list[np.ndarray],
    labels: list[np.ndarray | None],
    plan: Plan,
    *,
    progress: Callable[[int], None] | None = None,
    kind: Callable[..., Pass] | None = None,
    ranks: Ranks | None = None,
) -> Replay:
    """Run the probe once, halving the batch where memory runs out.

    Args:
        model: the model.
        routers: those of its routers that are measured.
        ids: the probe's sequences.
        labels: what each predicts; None where that is its own next token.
        plan: what is measured.
        progress: hears of tokens replayed.
        kind: how a pass goes about it; None for batch after batch through the whole model.
        ranks: who shares the probe, all calling this alike: rank 0 has the whole outcome, the
            others their own part. None for this process alone.

    Raises:
        ResourceError: not even one sequence at a time fits.
        UnsupportedArchitectureError: a router's output cannot be read.
    """
    size, kind = plan.batch_size, kind or Pass
    # A run's model stays as it is from checkpoint to checkpoint, and so must what is said of it.
    notes = [EAGER] if getattr(model, "_moegeo_eager", False) else []
    while True:
        try:
            once = partial(
                _run_once, kind, ranks, model, routers, ids, labels, plan, size, progress
            )
            result = once() if ranks is None else ranks.together(once)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if UNGROUPED in str(error) and EAGER not in notes:
                model.set_experts_implementation("eager")  # type: ignore[operator]
                model._moegeo_eager = True  # type: ignore[assignment]
                notes.append(EAGER)
                continue
            if not is_out_of_memory(error):
                raise
            current = size or max(1, 2048 // max(len(i) for i in ids))
            if current == 1:
                raise ResourceError(
                    "not enough memory for one sequence at a time",
                    found=str(error).splitlines()[0],
                    hint="use --dtype bfloat16, --device cpu, or a probe of shorter sequences",
                ) from error
            size = current // 2
            notes.append(f"batch size halved to {size}: out of memory")
            continue
        result.notes = notes + result.notes
        if ranks is not None:
            collect(ranks, result, plan)
        return result


def _run_once(kind: Callable[..., Pass], ranks: Ranks | None, *arguments: Any) -> Replay:
    attempt = kind(*arguments)
    attempt.ranks = ranks
    return attempt.run()


class Pass:
    """One attempt at a pass, with one batch size."""

    ranks: Ranks | None = None

    def __init__(
        self,
        model: nn.Module,
        routers: list[Router],
        ids: list[np.ndarray],
        labels: list[np.ndarray | None],
        plan: Plan,
        batch_size: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.model, self.routers, self.plan, self.progress = model, routers, plan, progress
        self.recomputing, self.stops_early = False, not plan.needs_loss
        self.ids, self.labels, self.batch_size = ids, labels, batch_size
        self.lengths = np.array([len(i) for i in ids], dtype=np.int64)
        self.device = routers[0].weight_ED.device
        self.groups = int(plan.groups_S.max()) + 1
        self.gradients = LossGradients(plan)
        tokens = int(self.lengths.sum())
        self.traces = make_traces(routers, plan, tokens, self.groups)
        if plan.splits_S is not None:
            self._take_sides(plan.splits_S)
        self.loss_S = np.zeros(len(ids))
        self.sample_of_row = np.full(tokens, -1, dtype=np.int64)
        if plan.sample_rows is not None:
            self.sample_of_row[plan.sample_rows] = np.arange(len(plan.sample_rows))

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
        if self.ranks is not None:
            shares = share_batches(plan, self.lengths.tolist(), self.ranks.world)
            plan = shares[self.ranks.rank]
        self.own_tokens = sum(int(self.lengths[members].sum()) for members in plan)
        with self._hooks(), self._logit_gradients():
            self._batches(make_batches(self.ids, self.labels, plan, self.device))
        targets = [
            (len(i) - 1 if y is None else int((y[1:] != IGNORED_LABEL).sum()))
            for i, y in zip(self.ids, self.labels, strict=True)
        ]
        for trace in self.traces:
            if trace.calls == 0 and trace.problem is None:
                trace.problem = "the router was not called"
        return Replay(
            traces=self.traces,
            sequence_T=np.repeat(np.arange(len(self.ids)), self.lengths),
            loss_S=self.loss_S if self.plan.needs_loss else None,
            loss_tokens_S=np.array(targets, dtype=np.int64),
            batch_size=self.batch_size,
            unselected=self.gradients.unselected,
            notes=[],
            shares=shares,
        )

    def _take_sides(self, splits_S: np.ndarray) -> None:
        """Each router's side, and which of the probe's tokens it sees."""
        places_T = np.concatenate([np.arange(n) for n in self.lengths])
        source_T = places_T < np.repeat(splits_S, self.lengths)
        for trace in self.traces:
            trace.side = side_of(self.model, trace.router.module)
            trace.rows = np.flatnonzero(source_T == (trace.side == SOURCE))

    def _batches(self, batches: Iterable[Batch]) -> None:
        """One batch after another, each through the whole model."""
        for batch in batches:
            self._step(batch)
            if self.progress:
                done = int(batch.real_BN.sum())
                self.progress(done * int(self.lengths.sum()) // self.own_tokens)

    def _step(self, batch: Batch) -> None:
        """One batch, forward and, where a loss is needed, backward."""
        self._begin(self._rows_of(batch))
        if self.plan.needs_loss:
            losses = self._losses(batch, self._forward(self._inputs(batch)).logits)
            self.gradients.backward(losses, self.rows, self.pending)
        else:
            with contextlib.suppress(_EndOfRouters):
                self._forward(self._inputs(batch))
        self.pending.clear()

    def _rows_of(self, batch: Batch) -> BatchRows:
        """Where the batch's real tokens lie."""
        padded = batch.mask_BN is not None
        flat = batch.real_BN.reshape(-1).nonzero().squeeze(1) if padded else None
        sequences = batch.sequence_B.cpu().numpy()
        rows = BatchRows.of(flat, sequences, self.lengths, self.plan.groups_S)
        split = self._split_of(batch)
        return rows if split is None else rows.split(split, self.plan.groups_S)

    def _split_of(self, batch: Batch) -> int | None:
        """How many tokens of its sequences are a source, where there are two sides."""
        splits_S = self.plan.splits_S
        return None if splits_S is None else int(splits_S[int(batch.sequence_B[0])])

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model is called with."""
        split = self._split_of(batch)
        if split is not None:
            return split_inputs(self.model, batch.input_ids_BN, split)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_BN, "use_cache": False}
        if batch.mask_BN is not None:
            inputs["attention_mask"] = batch.mask_BN
        return inputs

    def _begin(self, rows: BatchRows) -> None:
        """From here on, routers are called for these tokens."""
        self.rows = rows
        self.pending: list[tuple[RouterTrace, RouterCall]] = []
        self.called: set[str] = set()

    def _losses(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The loss of every position, kept by sequence as well."""
        split = self._split_of(batch)
        if split is not None:
            logits = align_logits(logits, split, batch.input_ids_BN.shape[1])
        losses = F.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]),
            batch.targets_BN.reshape(-1).to(logits.device),
            reduction="none",
            ignore_index=IGNORED_LABEL,
        )
        by_sequence = losses.detach().double().reshape(batch.real_BN.shape).sum(1)
        self.loss_S[batch.sequence_B.cpu().numpy()] = by_sequence.cpu().numpy()
        return losses

    def _forward(self, inputs: dict[str, Any]) -> Any:
        """The model's own pass.

        Raises:
            UnsupportedArchitectureError: the model's own code fails.
        """
        try:
            return self.model(**inputs)
        except (MoegeoError, _EndOfRouters, MemoryError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or UNGROUPED in str(error):
                raise
            raise UnsupportedArchitectureError(
                f"the forward pass of {type(self.model).__name__} fails in the model's own code",
                found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                hint="check config.json, and that transformers itself can run this checkpoint",
            ) from error

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
        taps = [RouterTap(trace.router, self._on_forward(trace)) for trace in self.traces]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for tap in taps:
                tap.remove()

    def _on_forward(self, trace: RouterTrace) -> Callable[[RouterCall], None]:
        def take(call: RouterCall) -> None:
            if self.recomputing:  # seen before: only its gradient is of interest
                self.pending.append((trace, call))
                return
            trace.calls += 1
            if trace.calls == 1:
                trace.problem = verify_call(trace.router, call)
            if trace.problem is None:
                self._record(trace, call)
            self.called.add(trace.router.path)
            self.pending.append((trace, call))
            if self.stops_early and len(self.called) == len(self.traces):
                raise _EndOfRouters

        return take

    def _record(self, trace: RouterTrace, call: RouterCall) -> None:
        """Keep what the geometry needs, and feed the categorical Fisher."""
        rows = self.rows.of_side(trace.side)
        logits_NE = rows.real(call.logits_NE.detach().reshape(-1, trace.router.experts)).float()
        selected_NK = rows.real(call.selected_NK)
        weights_NK = rows.real(call.weights_NK.detach()).float()
        if trace.selected_TK is None or trace.weights_TK is None:
            shape = (len(trace.logits_TE), selected_NK.shape[1])
            trace.selected_TK = np.zeros(shape, dtype=np.int32)
            trace.weights_TK = np.zeros(shape, dtype=np.float32)
        trace.logits_TE[rows.probe_N] = logits_NE.cpu().numpy()
        trace.selected_TK[rows.probe_N] = selected_NK.cpu().numpy()
        trace.weights_TK[rows.probe_N] = weights_NK.cpu().numpy()
        samples = self.sample_of_row[rows.probe_N]
        kept = np.flatnonzero(samples >= 0)
        if len(kept):
            x_MD = rows.real(call.x_ND.detach())[torch.from_numpy(kept).to(call.x_ND.device)]
            if trace.sample_x_MD is None:
                count = int((self.sample_of_row >= 0).sum())
                trace.sample_x_MD = np.zeros((count, x_MD.shape[1]), dtype=np.float32)
            trace.sample_x_MD[samples[kept]] = x_MD.float().cpu().numpy()
        if CATEGORICAL in trace.fishers:
            x_ND = rows.real(call.x_ND.detach()).float()
            trace.fishers[CATEGORICAL].add(
                categorical_information(logits_NE, self.plan.scoring),
                x_ND.square(),
                rows.group_spans,
            )
