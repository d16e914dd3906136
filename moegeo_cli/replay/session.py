"""One pass of a probe through a model: routers tapped, loss taken, Fisher sums fed.

What a pass costs beyond the bare model: one matrix product a router and Fisher kind, and
the router logits kept until the pass is over. Gradients are asked for with respect to the
router logits alone, so that no parameter's gradient is formed.

Legend: B sequences of a batch, N real tokens of a batch, T of the probe, S sequences,
D router input width, E experts, K experts chosen per token, G groups of sequences.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.errors import ResourceError, UnsupportedArchitectureError
from moegeo_cli.fisher.accumulation import FisherAccumulator, exact_groups_fit
from moegeo_cli.fisher.categorical import categorical_information
from moegeo_cli.replay.batches import IGNORED_LABEL, Batch, make_batches, plan_batches
from moegeo_cli.replay.routers import Router, RouterCall, read_call, verify_call

CATEGORICAL = ("categorical", "token")
GRADIENT_UNITS = ("position", "sequence", "loss_token")
# Below this share of the selected rms, an unselected expert's gradient is rounding noise.
NOISE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass is to measure.

    `fishers` lists (kind, unit); `groups_S` gives each sequence's group. `unselected` says
    whether unselected experts carry gradient: "zero", "dense" or "verify" (not known).
    """

    fishers: tuple[tuple[str, str], ...]
    groups_S: np.ndarray
    unselected: str = "verify"
    scoring: str = "softmax"
    batch_size: int | None = None
    mixed_lengths: bool = True
    sample_rows: np.ndarray | None = None  # rows of the probe whose router inputs are kept
    seed: int = 0

    @property
    def needs_loss(self) -> bool:
        """Whether the pass must reach the loss and come back."""
        return any(kind == "empirical" for kind, _ in self.fishers)


@dataclass(slots=True)
class RouterTrace:
    """What one router did over the probe; rows follow the probe's order of tokens."""

    router: Router
    logits_TE: np.ndarray
    selected_TK: np.ndarray | None = None
    weights_TK: np.ndarray | None = None
    fishers: dict[tuple[str, str], FisherAccumulator] = field(default_factory=dict)
    dispatched_GE: np.ndarray | None = None
    sample_x_MD: np.ndarray | None = None
    problem: str | None = None
    calls: int = 0


@dataclass(slots=True)
class Replay:
    """The outcome of a pass: per-sequence loss sums (None without a loss) and the traces."""

    traces: list[RouterTrace]
    sequence_T: np.ndarray
    loss_S: np.ndarray | None
    loss_tokens_S: np.ndarray
    batch_size: int | None
    unselected: str
    notes: list[str]


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
) -> Replay:
    """Run the probe once, halving the batch where memory runs out.

    Raises:
        ResourceError: not even one sequence at a time fits.
        UnsupportedArchitectureError: a router's output cannot be read.
    """
    size = plan.batch_size
    notes: list[str] = []
    while True:
        try:
            result = _Pass(model, routers, ids, labels, plan, size, progress).run()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
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
        return result


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )


class _Pass:
    """One attempt at a pass, with one batch size."""

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
        self.ids, self.labels, self.batch_size = ids, labels, batch_size
        self.lengths = np.array([len(i) for i in ids], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.device = next(model.parameters()).device
        self.groups = int(plan.groups_S.max()) + 1
        self.unselected = plan.unselected
        tokens = int(self.offsets[-1])
        exact = exact_groups_fit(
            [tuple(r.weight_ED.shape) for r in routers],  # type: ignore[misc]
            len(plan.fishers),
            self.groups,
        )
        self.traces = [
            RouterTrace(
                router=router,
                logits_TE=np.zeros((tokens, router.experts), dtype=np.float32),
                dispatched_GE=np.zeros((self.groups, router.experts)),
                fishers={
                    key: FisherAccumulator(
                        router.experts,
                        int(router.weight_ED.shape[1]),
                        self.groups,
                        exact_groups=exact,
                        device=self.device,
                        seed=plan.seed,
                    )
                    for key in plan.fishers
                },
            )
            for router in routers
        ]
        self.loss_S = np.zeros(len(ids))
        self.sample_of_row = np.full(tokens, -1, dtype=np.int64)
        if plan.sample_rows is not None:
            self.sample_of_row[plan.sample_rows] = np.arange(len(plan.sample_rows))

    def run(self) -> Replay:
        """All batches."""
        plan = plan_batches(self.lengths.tolist(), self.batch_size, mixed=self.plan.mixed_lengths)
        # Rows of a group side by side, so that a group's Fisher sum is one matrix product.
        plan = [sorted(members, key=lambda s: (self.plan.groups_S[s], s)) for members in plan]
        with self._hooks(), self._gradients():
            for batch in make_batches(self.ids, self.labels, plan, self.device):
                self._step(batch)
                if self.progress:
                    self.progress(int(batch.real_BN.sum()))
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
            unselected=self.unselected,
            notes=[],
        )

    def _step(self, batch: Batch) -> None:
        """One batch, forward and, where a loss is needed, backward."""
        real_BN = batch.real_BN
        width = real_BN.shape[1]
        self.flat_rows = None if batch.mask_BN is None else real_BN.reshape(-1).nonzero().squeeze(1)
        sequences = batch.sequence_B.cpu().numpy()
        self.rows = np.concatenate(
            [np.arange(self.offsets[s], self.offsets[s + 1]) for s in sequences]
        )
        self.token_sequences = np.repeat(sequences, self.lengths[sequences])
        self.spans = _spans(self.plan.groups_S[self.token_sequences])
        self.sequence_spans = _spans(self.token_sequences)
        self.pending: list[tuple[RouterTrace, RouterCall]] = []
        self.called: set[str] = set()
        inputs = {"input_ids": batch.input_ids_BN, "use_cache": False}
        if batch.mask_BN is not None:
            inputs["attention_mask"] = batch.mask_BN
        if self.plan.needs_loss:
            logits = self.model(**inputs).logits
            losses = F.cross_entropy(
                logits.float().reshape(-1, logits.shape[-1]),
                batch.targets_BN.reshape(-1),
                reduction="none",
                ignore_index=IGNORED_LABEL,
            )
            self.loss_S[sequences] = (
                losses.detach().double().reshape(-1, width).sum(1).cpu().numpy()
            )
            self._backward(losses)
        else:
            with contextlib.suppress(_EndOfRouters):
                self.model(**inputs)
        self.pending.clear()

    def _backward(self, losses: torch.Tensor) -> None:
        """Hand every router the derivatives of the loss with respect to its logits."""
        targets = [(t, c) for t, c in self.pending if c.logits_NE.requires_grad and not t.problem]
        if not targets:
            return
        wanted = [call.logits_NE for _, call in targets]
        units = {unit for kind, unit in self.plan.fishers if kind == "empirical"}
        if units & {"position", "sequence"}:
            # Each hook lets go of its router's tensors as the gradient passes, last layer first.
            handles = [
                call.logits_NE.register_hook(self._on_gradient(trace, call))
                for trace, call in targets
            ]
            torch.autograd.grad(
                losses.sum(), wanted, allow_unused=True, retain_graph="loss_token" in units
            )
            for handle in handles:
                handle.remove()
        if "loss_token" in units:
            self._backward_each_loss(losses, targets)

    def _on_gradient(self, trace: RouterTrace, call: RouterCall) -> Callable[[torch.Tensor], None]:
        def take(gradient: torch.Tensor) -> None:
            delta_NE = self._real(gradient.reshape(-1, trace.router.experts)).float()
            delta_NE = self._clear_unselected(trace, call, delta_NE)
            x_ND = self._real(call.x_ND.detach()).float()
            if ("empirical", "position") in trace.fishers:
                trace.fishers["empirical", "position"].add(
                    delta_NE.square(), x_ND.square(), self.spans
                )
            if ("empirical", "sequence") in trace.fishers:
                for (group, _, _), (_, start, stop) in zip(
                    self._groups_of_sequences(), self.sequence_spans, strict=True
                ):
                    row_sum = delta_NE[start:stop].T @ x_ND[start:stop]
                    trace.fishers["empirical", "sequence"].add_sum(row_sum.square(), group)

        return take

    def _groups_of_sequences(self) -> list[tuple[int, int, int]]:
        return [(int(self.plan.groups_S[s]), start, stop) for s, start, stop in self.sequence_spans]

    def _backward_each_loss(
        self, losses: torch.Tensor, targets: list[tuple[RouterTrace, RouterCall]]
    ) -> None:
        """The exact unit: one backward per loss token. Slow by a factor of the token count."""
        wanted = [call.logits_NE for _, call in targets]
        rows = (
            self.flat_rows.cpu().numpy() if self.flat_rows is not None else np.arange(len(losses))
        )
        for place, row in enumerate(rows):
            if float(losses[row].detach()) == 0.0 and not losses[row].requires_grad:
                continue
            gradients = torch.autograd.grad(
                losses[row], wanted, allow_unused=True, retain_graph=True
            )
            group = int(self.plan.groups_S[self.token_sequences[place]])
            for (trace, call), gradient in zip(targets, gradients, strict=True):
                if gradient is None:
                    continue
                delta_NE = self._real(gradient.reshape(-1, trace.router.experts)).float()
                delta_NE = self._clear_unselected(trace, call, delta_NE)
                x_ND = self._real(call.x_ND.detach()).float()
                trace.fishers["empirical", "loss_token"].add_sum(
                    (delta_NE.T @ x_ND).square(), group
                )

    def _clear_unselected(
        self, trace: RouterTrace, call: RouterCall, delta_NE: torch.Tensor
    ) -> torch.Tensor:
        """Set the rounding noise of unselected experts to exactly 0, where it is noise.

        Which experts carry gradient is a fact of the architecture, checked here by
        magnitude and never decided entry by entry.
        """
        if self.unselected == "dense":
            return delta_NE
        selected_NE = torch.zeros_like(delta_NE, dtype=torch.bool)
        selected_NE.scatter_(1, self._real(call.selected_NK).clamp_min(0), True)
        if trace.calls == 1 or self.unselected == "verify":
            self._verify_unselected(trace, delta_NE, selected_NE, call.x_ND.dtype)
            if self.unselected == "dense":
                return delta_NE
        return delta_NE.where(selected_NE, 0.0)

    def _verify_unselected(
        self,
        trace: RouterTrace,
        delta_NE: torch.Tensor,
        selected_NE: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:
        chosen, others = delta_NE[selected_NE], delta_NE[~selected_NE]
        if not others.numel() or not torch.isfinite(delta_NE).all():
            return
        scale = float(chosen.square().mean().sqrt())
        if scale == 0:
            return
        ratio = float(others.square().mean().sqrt()) / scale
        noise = ratio <= NOISE.get(dtype, 1e-4)
        if self.unselected == "verify":
            self.unselected = "zero" if noise else "dense"
        elif not noise:
            raise UnsupportedArchitectureError(
                f"the router {trace.router.path} gives gradient to experts that it did not select",
                found=f"{ratio:.2g} of the selected experts' rms",
                hint="report this model type: its entry in architectures.toml is wrong",
            )

    @contextlib.contextmanager
    def _gradients(self) -> Iterator[None]:
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
        handles = [
            trace.router.module.register_forward_hook(self._on_forward(trace))
            for trace in self.traces
        ]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_forward(self, trace: RouterTrace) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = read_call(trace.router, args, output)
            trace.calls += 1
            if trace.calls == 1:
                trace.problem = verify_call(trace.router, call)
            if trace.problem is None:
                self._record(trace, call)
            self.called.add(trace.router.path)
            self.pending.append((trace, call))
            if not self.plan.needs_loss and len(self.called) == len(self.traces):
                raise _EndOfRouters

        return take

    def _real(self, rows: torch.Tensor) -> torch.Tensor:
        """Real tokens only: padding never counts."""
        return rows if self.flat_rows is None else rows.index_select(0, self.flat_rows)

    def _record(self, trace: RouterTrace, call: RouterCall) -> None:
        """Keep what the geometry needs, and feed the categorical Fisher."""
        logits_NE = self._real(call.logits_NE.detach().reshape(-1, trace.router.experts)).float()
        selected_NK = self._real(call.selected_NK)
        weights_NK = self._real(call.weights_NK.detach()).float()
        if trace.selected_TK is None or trace.weights_TK is None:
            shape = (len(trace.logits_TE), selected_NK.shape[1])
            trace.selected_TK = np.zeros(shape, dtype=np.int32)
            trace.weights_TK = np.zeros(shape, dtype=np.float32)
        trace.logits_TE[self.rows] = logits_NE.cpu().numpy()
        trace.selected_TK[self.rows] = selected_NK.cpu().numpy()
        trace.weights_TK[self.rows] = weights_NK.cpu().numpy()
        samples = self.sample_of_row[self.rows]
        kept = np.flatnonzero(samples >= 0)
        if len(kept):
            x_MD = self._real(call.x_ND.detach())[torch.from_numpy(kept).to(self.device)]
            if trace.sample_x_MD is None:
                count = int((self.sample_of_row >= 0).sum())
                trace.sample_x_MD = np.zeros((count, x_MD.shape[1]), dtype=np.float32)
            trace.sample_x_MD[samples[kept]] = x_MD.float().cpu().numpy()
        if CATEGORICAL in trace.fishers:
            x_ND = self._real(call.x_ND.detach()).float()
            trace.fishers[CATEGORICAL].add(
                categorical_information(logits_NE, self.plan.scoring), x_ND.square(), self.spans
            )


def _spans(keys: np.ndarray) -> list[tuple[int, int, int]]:
    """(key, start, stop) of each run of equal keys."""
    if not len(keys):
        return []
    cuts = np.flatnonzero(np.diff(keys)) + 1
    starts = np.concatenate([[0], cuts])
    stops = np.concatenate([cuts, [len(keys)]])
    return [(int(keys[a]), int(a), int(b)) for a, b in zip(starts, stops, strict=True)]
