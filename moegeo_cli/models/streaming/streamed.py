"""A streamed pass: every batch goes through a layer before the next layer is read.

Forward, without a graph, the output of every layer is kept: the layer boundaries. Backward, a
layer at a time from the last one, each batch's layer is computed again with a graph, and the
gradient of its output, known by then, is taken through it: to its router's logits and to the
boundaries before it. The model's own code between the layers is part of that graph.

Legend: B sequences of a batch, N their positions, D model width.
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
class _Travelling:
    """A batch between layers: the outputs so far, and the loss's gradient there."""

    batch: AnyBatch
    rows: BatchRows
    outputs: list[Any] = field(default_factory=list)
    gradients: list[list[torch.Tensor | None]] = field(default_factory=list)


class StreamedPass(Pass):
    """One attempt at a pass, layer by layer.

    Args:
        stream: where the layers come from.
        boundary_bytes: how many bytes of layer boundaries may be kept: that decides how many
            batches travel together, one at least.
        rest: as `Pass` takes them.
    """

    def __init__(self, stream: LayerStream, boundary_bytes: int, *rest: Any) -> None:
        super().__init__(*rest)
        self.stream, self.boundary_bytes = stream, boundary_bytes
        self.stops_early = False
        self.first, self.last = stream.first_routed, len(stream.layers)
        if not self.plan.needs_loss:
            self.last = stream.last_routed + 1
        rounds = self.last + (self.last - self.first + 1 if self.plan.needs_loss else 0)
        self._share, self._told = 1 / rounds, 0.0
        self._pair: tuple[Trial, _Travelling] | None = None  # the small batch, until it was tried

    def _try(self, trial: Trial) -> None:
        """See `Pass`: layer by layer, with the first batches that travel."""
        nothing = np.zeros(0, dtype=np.int64)
        rows = BatchRows(None, nothing, nothing, nothing, [], [])
        self._pair = (trial, _Travelling(trial.batch, rows))

    def _try_layer(self, place: int) -> None:
        """Run the small batch twice through one layer that is in memory."""
        assert self._pair is not None
        trial, item = self._pair
        for again in (False, True):
            with self._trying(trial, again=again):
                output = self._run(place, item, trial.plan)
        item.outputs.append(trees.tree_map_only(torch.Tensor, torch.detach, output))

    def _try_order(self) -> None:
        """Check that the model's own code runs each layer once, in order.

        Raises:
            UnsupportedArchitectureError: some layer is run again.
        """
        assert self._pair is not None
        trial, item = self._pair
        lacking = len(self.stream.layers) - len(item.outputs)
        if not lacking or isinstance(item.outputs[-1], torch.Tensor):
            item.outputs += [item.outputs[-1]] * lacking  # no router lies behind: any will do
            with torch.no_grad(), self._trying(trial, again=False):
                self._run(len(self.stream.layers), item, trial.plan)
        self._pair = None

    def _batches(self, batches: Iterable[AnyBatch]) -> None:
        for together in self._companies(batches):
            self._forward_all(together)
            if self.plan.needs_loss:
                self._backward_all(together)

    def _companies(self, batches: Iterable[AnyBatch]) -> Iterator[list[_Travelling]]:
        """Groups of batches that travel together."""
        each = self.stream.boundary
        company: list[_Travelling] = []
        held = 0
        for batch in batches:
            size = each * batch.positions
            if company and held + size > self.boundary_bytes:
                yield company
                company, held = [], 0
            company.append(_Travelling(batch, find_rows(batch, self.lengths, self.plan)))
            held += size
        if company:
            yield company

    def _forward_all(self, together: Sequence[_Travelling]) -> None:
        for place in range(self.last):
            with self.stream.layer(place), torch.no_grad():
                if place + 1 < self.last:
                    self.stream.announce(place + 1)
                if self._pair is not None:
                    self._try_layer(place)
                for item in together:
                    self._begin(item.batch, item.rows)
                    output = self._run(place, item)
                    item.outputs.append(trees.tree_map_only(torch.Tensor, torch.detach, output))
                    self._tell(item)
        if self._pair is not None:
            self._try_order()

    def _backward_all(self, together: Sequence[_Travelling]) -> None:
        self.stream.announce(self.last - 1)
        for item in together:
            for tensor in _leaves(item.outputs[max(self.first - 1, 0) :]):
                tensor.requires_grad_(True)
            item.gradients = [[None] * len(_leaves([output])) for output in item.outputs]
            self._begin(item.batch, item.rows)
            losses = self._losses(item.batch, self._run(len(self.stream.layers), item).logits)
            self._pull(item, len(self.stream.layers), [losses.sum()], None)
            self._tell(item)
            del losses
        for place in reversed(range(self.first, self.last)):
            with self.stream.layer(place):
                if place > self.first:
                    self.stream.announce(place - 1)
                for item in together:
                    self._recompute(place, item)
                    self._tell(item)

    def _recompute(self, place: int, item: _Travelling) -> None:
        """One layer of one batch once more, with the gradient through it."""
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
        self._pull(item, place, [o for o, _ in known], [g for _, g in known])

    def _pull(
        self,
        item: _Travelling,
        place: int,
        outputs: list[torch.Tensor],
        gradients: list[torch.Tensor] | None,
    ) -> None:
        """Take the gradient through one layer, back to the boundaries before it."""
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

    def _run(self, place: int, item: _Travelling, plan: Plan | None = None) -> Any:
        inputs = call_inputs(self.model, item.batch, plan or self.plan)
        return self.stream.run(place, lambda: self._forward(inputs), item.outputs)

    def _tell(self, item: _Travelling) -> None:
        """Report progress: a batch in a layer is its share of the batch's tokens."""
        if self.progress:
            before = int(self._told)
            self._told += item.batch.tokens * self._share
            self.progress(int(self._told + 1e-6) - before)


def streamed(stream: LayerStream, boundary_bytes: int) -> Callable[..., Pass]:
    """The kind of pass for `replay` with a streamed model."""
    return lambda *rest: StreamedPass(stream, boundary_bytes, *rest)


def _leaves(outputs: Any) -> list[torch.Tensor]:
    """Floating-point tensors in a layer's output."""
    return [
        part
        for part in trees.tree_leaves(outputs)
        if isinstance(part, torch.Tensor) and part.is_floating_point()
    ]
