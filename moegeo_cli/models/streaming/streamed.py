"""A streamed pass: all batches run through one layer before the next layer is read.

The forward pass runs without an autograd graph, and the output of every layer is kept (the layer
boundaries). The backward pass goes from the last layer to the first. It computes each layer again
with a graph, and backpropagates the gradient of the layer's output to the logits of its router and
to the earlier boundaries. The model's code between the layers is part of that graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as trees

from moegeo_cli.models.streaming.layer_stream import LayerStream
from moegeo_cli.replay.calls import Trial
from moegeo_cli.replay.feeding import AnyBatch, call_inputs, find_rows
from moegeo_cli.replay.forward_pass import Pass
from moegeo_cli.replay.plan import BatchRows, Plan


@dataclass(slots=True)
class _BatchInFlight:
    """A batch that has run through some layers.

    Attributes:
        batch: the batch.
        rows: its rows in the plan of the pass.
        outputs: output of each layer so far.
        gradients: for each of these outputs, the loss's gradient by its floating-point tensors.
    """

    batch: AnyBatch
    rows: BatchRows
    outputs: list[Any] = field(default_factory=list)
    gradients: list[list[torch.Tensor | None]] = field(default_factory=list)


class StreamedPass(Pass):
    """A pass that runs layer by layer.

    Args:
        stream: the model, one layer at a time.
        boundary_bytes: largest number of bytes of layer boundaries. It decides how many batches run
            through the layers together; one at least.
        rest: arguments of `Pass`.
    """

    def __init__(self, stream: LayerStream, boundary_bytes: int, *rest: Any) -> None:
        super().__init__(*rest)
        self.stream, self.boundary_bytes = stream, boundary_bytes
        self.stops_early = False
        self.first, self.last = stream.first_routed, len(stream.layers)
        if not self.plan.needs_loss:
            self.last = stream.last_routed + 1
        rounds = self.last + (self.last - self.first + 1 if self.plan.needs_loss else 0)
        self._share, self._reported = 1 / rounds, 0.0
        self._pair: tuple[Trial, _BatchInFlight] | None = None  # the trial batch, until it has run

    def _try(self, trial: Trial) -> None:
        """See `Pass`: the trial batch runs layer by layer, together with the first batches."""
        nothing = np.zeros(0, dtype=np.int64)
        rows = BatchRows(None, nothing, nothing, nothing, [], [])
        self._pair = (trial, _BatchInFlight(trial.batch, rows))

    def _try_layer(self, place: int) -> None:
        """Run the trial batch twice through one layer that is in memory."""
        assert self._pair is not None
        trial, item = self._pair
        for again in (False, True):
            with self._trying(trial, again=again):
                output = self._run(place, item, trial.plan)
        item.outputs.append(trees.tree_map_only(torch.Tensor, torch.detach, output))

    def _try_order(self) -> None:
        """Check that the model's own code runs each layer once, in order.

        Raises:
            UnsupportedArchitectureError: it does not.
        """
        assert self._pair is not None
        trial, item = self._pair
        lacking = len(self.stream.layers) - len(item.outputs)
        if not lacking or isinstance(item.outputs[-1], torch.Tensor):
            item.outputs += [item.outputs[-1]] * lacking  # no routers follow: any output will do
            with torch.no_grad(), self._trying(trial, again=False):
                self._run(len(self.stream.layers), item, trial.plan)
        self._pair = None

    def _batches(self, batches: Iterable[AnyBatch]) -> None:
        for together in self._batch_groups(batches):
            self._forward_all(together)
            if self.plan.needs_loss:
                self._backward_all(together)

    def _batch_groups(self, batches: Iterable[AnyBatch]) -> Iterator[list[_BatchInFlight]]:
        """Groups of batches that run through the layers together."""
        each = self.stream.boundary
        group: list[_BatchInFlight] = []
        held = 0
        for batch in batches:
            size = each * batch.positions
            if group and held + size > self.boundary_bytes:
                yield group
                group, held = [], 0
            group.append(_BatchInFlight(batch, find_rows(batch, self.lengths, self.plan)))
            held += size
        if group:
            yield group

    def _forward_all(self, together: Sequence[_BatchInFlight]) -> None:
        for place in range(self.last):
            with self.stream.layer(place), torch.no_grad():
                if place + 1 < self.last:
                    self.stream.prefetch(place + 1)
                if self._pair is not None:
                    self._try_layer(place)
                for item in together:
                    self._begin(item.batch, item.rows)
                    output = self._run(place, item)
                    item.outputs.append(trees.tree_map_only(torch.Tensor, torch.detach, output))
                    self._report_progress(item)
        if self._pair is not None:
            self._try_order()

    def _backward_all(self, together: Sequence[_BatchInFlight]) -> None:
        self.stream.prefetch(self.last - 1)
        for item in together:
            for tensor in _leaves(item.outputs[max(self.first - 1, 0) :]):
                tensor.requires_grad_(True)
            item.gradients = [[None] * len(_leaves([output])) for output in item.outputs]
            self._begin(item.batch, item.rows)
            losses = self._losses(item.batch, self._run(len(self.stream.layers), item).logits)
            self._backpropagate(item, [losses.sum()], None)
            self._report_progress(item)
            del losses
        for place in reversed(range(self.first, self.last)):
            with self.stream.layer(place):
                if place > self.first:
                    self.stream.prefetch(place - 1)
                for item in together:
                    self._recompute(place, item)
                    self._report_progress(item)

    def _recompute(self, place: int, item: _BatchInFlight) -> None:
        """Compute one layer of one batch again, and backpropagate through it."""
        gradients = item.gradients.pop()
        item.outputs.pop()
        if all(gradient is None for gradient in gradients):
            return
        self._begin(item.batch, item.rows)
        self.recomputing = True
        try:
            outputs = _leaves([self._run(place, item)])
        finally:
            self.recomputing = False
        known = [
            (o, g)
            for o, g in zip(outputs, gradients, strict=True)
            if g is not None and o.requires_grad
        ]
        self._backpropagate(item, [o for o, _ in known], [g for _, g in known])

    def _backpropagate(
        self,
        item: _BatchInFlight,
        outputs: list[torch.Tensor],
        gradients: list[torch.Tensor] | None,
    ) -> None:
        """Backpropagate through one layer, and add the gradients of the boundaries before it.

        Args:
            item: the batch.
            outputs: tensors of the layer's output, or losses, to start from.
            gradients: their gradients; None for losses.
        """
        boundaries = [_leaves([output]) for output in item.outputs]
        leaves = [t for tensors in boundaries for t in tensors if t.requires_grad]
        if not outputs:
            self.pending.clear()
            return
        found = iter(self.gradients.pull(outputs, gradients, self.rows, self.pending, leaves))
        for tensors, sums in zip(boundaries, item.gradients, strict=True):
            for slot, tensor in enumerate(tensors):
                gradient = next(found) if tensor.requires_grad else None
                if gradient is not None:
                    held = sums[slot]
                    sums[slot] = gradient if held is None else held + gradient
        self.pending.clear()

    def _run(self, place: int, item: _BatchInFlight, plan: Plan | None = None) -> Any:
        inputs = call_inputs(self.model, item.batch, plan or self.plan)
        return self.stream.run(place, lambda: self._forward(inputs), item.outputs)

    def _report_progress(self, item: _BatchInFlight) -> None:
        """Report the tokens of a batch, divided by the number of layers that it runs through."""
        if self.progress:
            before = int(self._reported)
            self._reported += item.batch.tokens * self._share
            self.progress(int(self._reported + 1e-6) - before)


def streamed(stream: LayerStream, boundary_bytes: int) -> Callable[..., Pass]:
    """A constructor of `StreamedPass`, for `ReplayMode.kind`."""
    return lambda *rest: StreamedPass(stream, boundary_bytes, *rest)


def _leaves(outputs: Any) -> list[torch.Tensor]:
    """The floating-point tensors in layers' outputs."""
    return [
        part
        for part in trees.tree_leaves(outputs)
        if isinstance(part, torch.Tensor) and part.is_floating_point()
    ]
