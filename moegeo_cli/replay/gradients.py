"""Backpropagate the loss to the router logits, which gives the samples of the empirical Fisher.

Only gradients of the router logits are computed; no gradient of a parameter is formed.

Legend: N real tokens of a batch, D router input width, E experts, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.plan import BatchRows, Plan, RouterTrace
from moegeo_cli.replay.reading import RouterCall

# A computed choice is compared with the gradient if at least the share COMMON of the tokens has the
# same number of experts with a gradient. At most the share UNEXPLAINED may reach other experts.
COMMON, UNEXPLAINED = 0.5, 0.01
ROUNDING = 1e-6  # share of the batch's largest gradient under which a gradient counts as 0
# If a router's gradient is below this share of the gradient that its combine weights pass on, it is
# only rounding error: all experts give the same output, as after upcycling.
CANCELLED = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 2e-3}
# If the selected experts' gradient (rms, nats) is below this, it may be rounding noise too.
UNDECIDED = {torch.float32: 1e-7, torch.bfloat16: 1e-5, torch.float16: 1e-6}
# Unselected experts' gradient below this share of the selected experts' rms is rounding noise.
NOISE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}


class LossGradients:
    """Adds the loss's gradients with respect to router logits to the routers' Fisher sums.

    Args:
        plan: which units are measured, and whether unselected experts carry gradient.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.unselected = plan.unselected
        self._verified: set[str] = set()
        self._reach: dict[str, float] = {}  # rms of (weight × its gradient) in the current batch
        self.cancelled: set[str] = set()  # routers whose gradient was rounding in some batch
        self.units = {unit for kind, unit in plan.fishers if kind == "empirical"}

    def backward(
        self,
        losses: torch.Tensor,
        rows: BatchRows,
        calls: list[tuple[RouterTrace, RouterCall]],
    ) -> None:
        """Add one batch to the routers' Fisher sums.

        Args:
            losses: loss of every position, including padding (0 without a label); or one loss per
                sample.
            rows: the rows of the batch's real tokens.
            calls: each router's trace and its call in this batch.
        """
        targets = _reachable(calls)
        if targets and self.units & {"position", "sequence"}:
            self.pull([losses.sum()], None, rows, calls, retain="loss_token" in self.units)
        if targets and "loss_token" in self.units:
            self._backward_each_loss(losses, rows, targets)

    def pull(
        self,
        outputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor] | None,
        rows: BatchRows,
        calls: list[tuple[RouterTrace, RouterCall]],
        leaves: Sequence[torch.Tensor] = (),
        retain: bool = False,
    ) -> tuple[torch.Tensor | None, ...]:
        """Backpropagate the loss's gradient from `outputs` to the routers' logits and to `leaves`.

        Args:
            outputs: tensors at which the gradient is known.
            gradients: the loss's gradient at `outputs`; None if `outputs` is the loss.
            rows: the rows of the batch's real tokens.
            calls: traces and calls of the routers between `leaves` and `outputs`.
            leaves: further tensors whose gradients are returned.
            retain: whether the graph is needed again.

        Returns:
            The gradient of each leaf; None for one on which `outputs` do not depend.
        """
        targets = _reachable(calls)
        # Hooks free each router's tensors as soon as its gradient is known, last layer first.
        handles = [
            call.logits_NE.register_hook(self._on_gradient(rows, trace, call))
            for trace, call in targets
        ]
        handles += self._watch_weights(targets)
        wanted = [*(call.logits_NE for _, call in targets), *leaves]
        found: tuple[torch.Tensor | None, ...] = ()
        if wanted:
            found = torch.autograd.grad(
                outputs, wanted, gradients, allow_unused=True, retain_graph=retain
            )
        for handle in handles:
            handle.remove()
        return found[len(targets) :]

    def _on_gradient(
        self, rows: BatchRows, trace: RouterTrace, call: RouterCall
    ) -> Callable[[torch.Tensor], None]:
        own = rows.of_side(trace.side)

        def take(gradient: torch.Tensor) -> None:
            delta_NE = self._derivative(own, trace, call, gradient)
            x_ND = own.real(call.x_ND.detach()).float()
            if ("empirical", "position") in trace.fishers:
                trace.fishers["empirical", "position"].add(
                    delta_NE.square(), x_ND.square(), own.group_spans
                )
            if ("empirical", "sequence") in trace.fishers:
                for sequence, start, stop in own.sequence_spans:
                    row_sum = delta_NE[start:stop].T @ x_ND[start:stop]
                    group = int(self.plan.groups_S[sequence])
                    trace.fishers["empirical", "sequence"].add_sum(row_sum.square(), group)

        return take

    def _backward_each_loss(
        self,
        losses: torch.Tensor,
        rows: BatchRows,
        targets: list[tuple[RouterTrace, RouterCall]],
    ) -> None:
        """The unit loss_token: one backward pass per loss, so slower by the number of losses."""
        wanted = [call.logits_NE for _, call in targets]
        positions = range(len(losses)) if rows.flat is None else rows.flat.tolist()
        width = len(losses) // len(rows.sequence_B)
        handles = self._watch_weights(targets)
        for position in positions:
            if float(losses[position].detach()) == 0.0 and not losses[position].requires_grad:
                continue
            gradients = torch.autograd.grad(
                losses[position], wanted, allow_unused=True, retain_graph=True
            )
            group = int(self.plan.groups_S[rows.sequence_B[position // width]])
            for (trace, call), gradient in zip(targets, gradients, strict=True):
                if gradient is None:
                    continue
                own = rows.of_side(trace.side)
                delta_NE = self._derivative(own, trace, call, gradient)
                x_ND = own.real(call.x_ND.detach()).float()
                trace.fishers["empirical", "loss_token"].add_sum(
                    (delta_NE.T @ x_ND).square(), group
                )

        for handle in handles:
            handle.remove()

    def _watch_weights(self, targets: list[tuple[RouterTrace, RouterCall]]) -> list[Any]:
        """Hooks that record the size of the gradient that the combine weights pass on."""
        self._reach.clear()

        def taker(path: str, given: torch.Tensor) -> Callable[[torch.Tensor], None]:
            def take(gradient: torch.Tensor) -> None:
                reach = gradient.float() * given.detach().float()
                self._reach[path] = float(reach.square().mean().sqrt())

            return take

        return [
            call.given.register_hook(taker(trace.router.path, call.given))
            for trace, call in targets
            if call.given is not None and call.given.requires_grad
        ]

    def _derivative(
        self, rows: BatchRows, trace: RouterTrace, call: RouterCall, gradient: torch.Tensor
    ) -> torch.Tensor:
        """The gradient at real tokens, (N, E), with rounding noise of unselected experts set to 0.

        Whether unselected experts carry gradient is a fact of the architecture. It is decided for
        the whole router by the size of their gradients, never for single entries.
        """
        delta_NE = rows.real(gradient.reshape(-1, trace.router.experts)).float()
        if self.plan.renormalised and _is_constant(rows.real(call.weights_NK.detach())):
            return torch.zeros_like(delta_NE)
        if self.unselected == "dense" and call.observed:
            return delta_NE
        if self._cancels(trace, call, delta_NE):
            self.cancelled.add(trace.router.path)
            return torch.zeros_like(delta_NE)
        selected_NK = rows.real(call.selected_NK).clamp_min(0)
        first = trace.router.path not in self._verified
        self._verified.add(trace.router.path)
        if first or self.unselected == "verify":
            selected_NE = torch.zeros_like(delta_NE, dtype=torch.bool).scatter_(
                1, selected_NK, True
            )
            if first and not call.observed:
                _confirm_choice(trace, delta_NE, selected_NE)
            if self.unselected != "dense":
                self._verify_unselected(trace, delta_NE, selected_NE, call.x_ND.dtype)
        if self.unselected == "dense":
            return delta_NE
        chosen_NK = delta_NE.gather(1, selected_NK)
        return torch.zeros_like(delta_NE).scatter_(1, selected_NK, chosen_NK)

    def _cancels(self, trace: RouterTrace, call: RouterCall, delta_NE: torch.Tensor) -> bool:
        """Whether the gradient at the logits of a batch is only rounding error.

        If all experts of a token give the same output, renormalised weights do not matter: the
        contributions of the weights cancel up to rounding.
        """
        reach = self._reach.get(trace.router.path)
        if reach is None or not self.plan.renormalised or not delta_NE.numel():
            return False
        slots = max(1, call.selected_NK.shape[1])
        rms = float(torch.linalg.vector_norm(delta_NE)) / (len(delta_NE) * slots) ** 0.5
        return rms <= CANCELLED.get(call.x_ND.dtype, 1e-5) * reach

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
        if not noise and scale <= UNDECIDED.get(dtype, 1e-7):
            self._verified.discard(trace.router.path)  # both may be rounding: try a later batch
            return
        if self.unselected == "verify":
            self.unselected = "zero" if noise else "dense"
        elif not noise:
            raise UnsupportedArchitectureError(
                f"the router {trace.router.path} gives gradient to experts that it did not select",
                found=f"{ratio:.2g} of the selected experts' rms",
                hint="report this model type: its file in checkpoints/families is wrong",
            )


def _is_constant(weights_NK: torch.Tensor) -> bool:
    """Whether the combine weights are constant: one expert per token, divided by its own weight.

    The loss then does not depend on the logits, and their gradient is only rounding error.
    """
    return weights_NK.shape[1] == 1 and bool((weights_NK == weights_NK[:1]).all())


def _reachable(
    calls: list[tuple[RouterTrace, RouterCall]],
) -> list[tuple[RouterTrace, RouterCall]]:
    """Calls whose logits are on the gradient path of the loss."""
    return [(t, c) for t, c in calls if c.logits_NE.requires_grad and not t.problem]


def _confirm_choice(trace: RouterTrace, delta_NE: torch.Tensor, selected_NE: torch.Tensor) -> None:
    """Compare a computed choice with the experts that have a gradient, if that is conclusive.

    If unselected experts have no gradient, every expert with a gradient was chosen. A chosen expert
    may lack a gradient at some tokens (a saturated score, an expert with output zero), but not at
    all. If all experts have a gradient, nothing can be concluded.

    Raises:
        UnsupportedArchitectureError: the model chose other experts.
    """
    largest_N1 = delta_NE.abs().amax(1, keepdim=True)
    rows_N = (largest_N1[:, 0] > 0) & torch.isfinite(largest_N1[:, 0])
    noise_N1 = (NOISE[torch.float32] * largest_N1).clamp_min(ROUNDING * float(largest_N1.max()))
    reached_NE = (delta_NE.abs() > noise_N1)[rows_N]
    if not len(reached_NE):
        return
    counts_N = reached_NE.sum(1)
    most = int(counts_N.max())
    if most == trace.router.experts or float((counts_N == most).float().mean()) < COMMON:
        return  # inconclusive: all experts have a gradient, or their number varies
    chosen_NE = selected_NE[rows_N]
    beyond = float((reached_NE & ~chosen_NE).any(1).float().mean())
    if beyond > UNEXPLAINED or most < int(chosen_NE.sum(1).max()):
        raise UnsupportedArchitectureError(
            f"the router {trace.router.path} does not choose the top {trace.router.top_k} of its "
            f"{trace.router.choice_scoring} scores",
            found=f"the loss's gradient reaches {most} experts of a token, others than the "
            f"computed ones at {beyond:.0%} of the tokens",
            hint="check --top-k and --scoring, or let the router return "
            "(logits, weights, indices) of its choice",
        )
    trace.confirmed = True
