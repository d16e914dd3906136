"""Find the peak bytes of a batch's activations, by running the model on torch's fake tensors.

Fake tensors have shapes but no memory. The model's forward pass, the loss and the backward pass run
on them, and the bytes of all live tensors are counted. Code that reads a tensor's values fails on
fake tensors; the activations of such a model are estimated from its widths. Of repeated layers only
the first few are run (`repeating.py`).

Legend: B sequences of a batch, N their positions, D model width, F expert width, E experts,
K experts chosen per token, V vocabulary.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

from moegeo_cli.models.memory.repeating import Repeats, copy_shortened, find_repeats
from moegeo_cli.replay.pairs import align_logits, split_inputs
from moegeo_cli.replay.plan import Plan
from moegeo_cli.replay.token_losses import flat_losses, logit_bytes
from moegeo_cli.routers.finding import find_routers

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Activations:
    """Peak bytes of one batch beside the weights.

    Attributes:
        layers: bytes of everything but `logits`.
        logits: bytes of the output logits, their gradient, and the buffers of the loss.
        traced: whether the bytes were traced, and not estimated from widths.
    """

    layers: int
    logits: int
    traced: bool

    @property
    def total(self) -> int:
        """Sum of `layers` and `logits`."""
        return self.layers + self.logits


class BatchTracer:
    """Finds the peak bytes of batches.

    Args:
        skeleton: the module tree, on the meta device; it is not changed.
        device: device of the computation.
        shorten: whether only the first of repeated layers are run.
    """

    def __init__(self, skeleton: nn.Module, device: torch.device, *, shorten: bool = True) -> None:
        self.skeleton, self.device, self.shorten = skeleton, device, shorten
        self.routers = find_routers(skeleton)
        self.vocabulary, self.width = skeleton.get_input_embeddings().weight.shape  # type: ignore[operator]
        self.itemsize = next(
            p.dtype.itemsize for p in skeleton.parameters() if p.is_floating_point()
        )
        self._copy: _FakeCopy | None = None

    def trace(self, shape: tuple[int, int], plan: Plan, *, padded: bool) -> Activations:
        """Peak bytes of a batch.

        Args:
            shape: (B, N) of the batch.
            plan: the plan of the pass; it decides whether there is a loss and a backward pass.
            padded: whether shorter sequences are padded, so that the model gets a mask.
        """
        positions = shape[0] * shape[1]
        logits = logit_bytes(positions, self.vocabulary, self.itemsize) if plan.needs_loss else 0
        own = positions * FLOAT * max(
            (4 * int(r.weight_ED.shape[1]) + 8 * r.experts for r in self.routers), default=0
        )  # fmt: skip  # inputs squared, logits and gradients, while a router is recorded
        peak = self._peak(shape, plan, padded)
        if peak is None:
            return Activations(self.estimate(positions, plan) + own, logits, traced=False)
        return Activations(max(0, peak - logits) + own, logits, traced=True)

    def estimate(self, positions: int, plan: Plan) -> int:
        """`layers` estimated from widths.

        Args:
            positions: positions of the batch.
            plan: the plan of the pass.
        """
        inner = max((p.shape[-1] + p.shape[-2] for r in self.routers for p in r.parent.parameters()
                     if p.ndim >= 2), default=self.width)  # fmt: skip
        depth = max((r.layer for r in self.routers), default=0) + 1
        return estimate_layers(
            positions, depth, self.width, sum((r.top_k or 1) * inner for r in self.routers),
            graph=plan.needs_loss,
        )  # fmt: skip

    def _peak(self, shape: tuple[int, int], plan: Plan, padded: bool) -> int | None:
        """Peak bytes beside the parameters; None if the model does not run on fake tensors."""
        while True:
            try:
                if self._copy is None:
                    repeats = find_repeats(self.skeleton, self.routers) if self.shorten else []
                    self._copy = _FakeCopy(self.skeleton, repeats, self.device)
                return self._copy.peak(shape, plan, padded)
            except Exception:  # a model's code may raise anything on fake tensors
                if not self.shorten:
                    return None
                self.shorten, self._copy = False, None  # some models need all layers


class _FakeCopy:
    """A copy of a module tree with fake tensors, and perhaps with fewer layers.

    Args:
        skeleton: the module tree.
        repeats: lists of layers that are shortened in the copy.
        device: device of the computation.
    """

    def __init__(
        self, skeleton: nn.Module, repeats: Sequence[Repeats], device: torch.device
    ) -> None:
        from torch._subclasses import FakeTensorMode

        self.repeats, self.device = repeats, device
        self.model = copy_shortened(skeleton, repeats)
        self.routers = find_routers(self.model)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        _replace_by_fakes(self.model, self.mode, device)

    def peak(self, shape: tuple[int, int], plan: Plan, padded: bool) -> int:
        """Peak bytes of a batch beside the parameters, extrapolated to all layers."""
        split = plan.splits_S is not None
        with self.mode, _LiveBytes() as live, self._bytes_before_periods(live) as periods:
            ids_BN = torch.zeros(shape, dtype=torch.long, device=self.device)
            mask_BN = torch.ones_like(ids_BN) if padded else None
            if plan.needs_loss:
                self._forward_backward(ids_BN, mask_BN, split=split)
            else:
                self._forward_to_last_router(ids_BN, mask_BN, split=split)
            return live.peak + sum(
                one.left_out * max(0, after - before, self._gradients(one, plan))
                for one, (before, after) in zip(self.repeats, periods, strict=True)
            )

    @contextlib.contextmanager
    def _bytes_before_periods(self, live: _LiveBytes) -> Iterator[list[list[int]]]:
        """Live bytes before each of the last two periods of each shortened list."""
        found: list[list[int]] = []
        with contextlib.ExitStack() as stack:
            for one in self.repeats:
                layers, seen = self.model.get_submodule(one.path), [0, 0]
                found.append(seen)
                for place, index in enumerate((one.kept - 2 * one.period, one.kept - one.period)):

                    def take(*_: Any, seen: list[int] = seen, place: int = place) -> None:
                        seen[place] = live.now

                    hook = layers[index].register_forward_pre_hook(take)  # type: ignore[index]
                    stack.callback(hook.remove)
            yield found

    def _gradients(self, one: Repeats, plan: Plan) -> int:
        """Bytes of the routers' gradients of one period, which the backward pass keeps."""
        if not plan.needs_loss:
            return 0
        last = {f"{one.path}.{one.kept - n}." for n in range(1, one.period + 1)}
        weights = [r.weight_ED for r in self.routers if any(r.path.startswith(p) for p in last)]
        return sum(w.numel() * w.element_size() for w in weights)

    def _forward_backward(
        self, ids_BN: torch.Tensor, mask_BN: torch.Tensor | None, *, split: bool
    ) -> None:
        weights: list[Any] = [r.linear.weight for r in self.routers]
        for weight in weights:
            weight.requires_grad_(True)
        logits = self._forward(ids_BN, mask_BN, split=split).logits
        if split:
            logits = align_logits(logits, _middle(ids_BN), ids_BN.shape[1])
        losses = flat_losses(logits, ids_BN)  # any labels will do
        del logits
        torch.autograd.grad(losses.sum(), weights, allow_unused=True)

    def _forward_to_last_router(
        self, ids_BN: torch.Tensor, mask_BN: torch.Tensor | None, *, split: bool
    ) -> None:
        def stop(*_: Any) -> None:
            raise _Stopped

        handle = self.routers[-1].module.register_forward_hook(stop)
        try:
            with torch.no_grad(), contextlib.suppress(_Stopped):
                self._forward(ids_BN, mask_BN, split=split)
        finally:
            handle.remove()

    def _forward(self, ids_BN: torch.Tensor, mask_BN: torch.Tensor | None, *, split: bool) -> Any:
        if split:
            return self.model(**split_inputs(self.model, ids_BN, _middle(ids_BN)))
        inputs = {"input_ids": ids_BN, "use_cache": False}
        return self.model(**inputs, **({} if mask_BN is None else {"attention_mask": mask_BN}))


class _Stopped(BaseException):
    """Raised after the last router to end a forward pass without a loss."""


def _middle(ids_BN: torch.Tensor) -> int:
    """The position at which a sequence is split between an encoder and a decoder."""
    return max(1, ids_BN.shape[1] // 2)


def estimate_layers(positions: int, depth: int, width: int, experts: int, *, graph: bool) -> int:
    """Bytes of a batch's activations in float32: 40 tensors of width D a layer, 4 an expert.

    Args:
        positions: positions of the batch.
        depth: number of layers.
        width: D.
        experts: K times the widths of an expert, summed over all routers.
        graph: whether the activations of all layers are kept for the backward pass, or only those
            of one layer.
    """
    total = depth * 40 * width + 4 * experts
    return positions * FLOAT * (total if graph else -(-total // depth))


def _replace_by_fakes(skeleton: nn.Module, mode: Any, device: torch.device) -> None:
    """Replace every parameter and buffer by a fake tensor on the device."""
    from torch._subclasses import FakeTensor

    made: dict[int, Any] = {}  # id of a tensor -> its fake, so that tied tensors stay tied

    def fake(tensor: torch.Tensor) -> Any:
        if id(tensor) not in made:
            with torch.no_grad():
                made[id(tensor)] = FakeTensor(mode, tensor.detach().to("meta"), device)
        return made[id(tensor)]

    for module in skeleton.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = fake(buffer)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that were created and are not freed yet.

    Attributes:
        now: live bytes.
        peak: the largest value of `now`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = _grouped_mm(*args, **kwargs) if func is GROUPED else func(*args, **kwargs)
        for tensor in trees.tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


GROUPED = torch.ops.aten._grouped_mm.default


def _grouped_mm(one: Any, other: Any, offs: Any = None, *_: Any, **__: Any) -> Any:
    """A fake result of `_grouped_mm`, for which torch's own fake accepts bfloat16 only."""
    if other.ndim == 3:
        return one.new_empty(*one.shape[:-1], other.shape[-1])
    return one.new_empty(offs.shape[0], one.shape[0], other.shape[-1])
