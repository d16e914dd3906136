"""Find the weights of each expert by names and shapes of a checkpoint's tensors.

The `experts` and `check` commands read expert weights through it. Families store experts in three
ways: separate tensors for each expert (`experts.3.up_proj.weight`), one 3-D tensor with the expert
as first dimension (`experts.gate_up_proj`), or one 2-D tensor with the rows of all experts below
each other (`experts.mlp.w1`).

Legend: E experts, R rows and C columns of one expert's matrix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moegeo_cli.checkpoints.accounting import known_reason
from moegeo_cli.checkpoints.misplaced import layer_path, shared_parts
from moegeo_cli.checkpoints.routers import RouterTensors, find_router_tensors
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, ShapeError

_SINGLE = re.compile(
    r"^(?P<block>(?:.*\.)?experts)\.(?:expert_)?(?P<expert>\d{1,5})\.(?P<role>.+)$"
)
_WITHIN = re.compile(r"(?:^|\.)experts\.")
_SHARED = re.compile(r"(?:^|\.)shared_(?:experts?|mlp)\.")
_BIAS = re.compile(r"(?:^|[._])(?:bias|b\d?|scale)$")
MOST_EXPERTS = 100_000


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """One weight of one expert.

    Attributes:
        name: the tensor that holds it.
        role: the part of the name that all experts of the layer share, such as
            `up_proj.weight`.
        expert: the expert's index.
        shape: shape of this expert's part: (R, C) for a matrix, (R,) for a bias.
        rows: (start, stop) of its rows in a tensor of all experts; None for a tensor of its own.
    """

    name: str
    role: str
    expert: int
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight matrix, not a bias or a scale."""
        return len(self.shape) == 2


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """The experts of one router: expert -> its tensors, by role. {} where none were found."""

    experts: Mapping[int, tuple[ExpertTensor, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors that hold these experts, each once, sorted."""
        found = {tensor.name for held in self.experts.values() for tensor in held}
        return tuple(sorted(found))


def find_expert_tensors(
    index: WeightIndex, routers: Sequence[RouterTensors]
) -> dict[str, ExpertTensors]:
    """Find the experts of each router.

    Args:
        index: the checkpoint's tensors.
        routers: its routers. Where a layer has several, experts go to the one that shares most
            of their name.

    Returns:
        Path of the router's module -> its experts.
    """
    by_layer: dict[str, list[RouterTensors]] = {}
    for router in routers:
        by_layer.setdefault(layer_path(router.module), []).append(router)
    found: dict[str, list[ExpertTensor]] = {router.module: [] for router in routers}
    taken = {
        n for r in routers for n in (r.weight, r.bias, r.selection_bias) if n is not None
    }  # fmt: skip
    for name in index.names():
        beside = by_layer.get(layer_path(name))
        if not beside or name in taken or _SHARED.search(name) or known_reason(name):
            continue
        router = _nearest(beside, name)
        if name.startswith(f"{router.module}.") and not _WITHIN.search(name):
            continue
        found[router.module] += _experts_in(name, index.shape(name), router)
    return {module: _sorted(tensors) for module, tensors in found.items()}


def check_expert_shapes(index: WeightIndex) -> None:
    """Raise if an expert lacks a tensor or has another shape than the others of its layer.

    Call it only after loading has failed. In some families experts differ on purpose (experts for
    images, experts without weights).

    Args:
        index: the checkpoint's tensors.

    Raises:
        IncompleteCheckpointError: an expert lacks a tensor that the others have; it is named.
        ShapeError: a tensor of an expert has another shape than those of the others.
    """
    routers = [router for router in find_router_tensors(index) if router.main]
    for held in find_expert_tensors(index, routers).values():
        by_role: dict[str, dict[int, ExpertTensor]] = {}
        for expert, tensors in held.experts.items():
            for tensor in tensors:
                by_role.setdefault(tensor.role, {})[expert] = tensor
        for role, own in by_role.items():
            lacking = sorted(set(range(max(held.experts) + 1)) - set(own))
            if lacking and any(tensor.is_matrix for tensor in own.values()):
                near = own[min(own)]
                name = near.name.replace(f".{near.expert}.", f".{lacking[0]}.")
                raise IncompleteCheckpointError(
                    f"an expert lacks a tensor that the model needs: {name}",
                    found=f"{len(own)} experts with {role}, numbered up to {max(held.experts)}",
                    hint="save or download the checkpoint again",
                    context={"missing": name},
                )
            shapes = Counter(tensor.shape for tensor in own.values())
            usual = shapes.most_common(1)[0][0]
            other = next((tensor for tensor in own.values() if tensor.shape != usual), None)
            if other is not None:
                raise ShapeError(
                    f"{other.name} has another shape than that of the other experts",
                    found=f"{list(other.shape)} for {list(usual)}",
                    hint="experts of unequal width are not read; else save the checkpoint again",
                    context={"tensor": other.name, "shape": list(other.shape)},
                )


def _experts_in(name: str, shape: tuple[int, ...], router: RouterTensors) -> Iterable[ExpertTensor]:
    """The expert weights that one tensor holds; [] where it holds none."""
    single = _SINGLE.match(name)
    if single is not None:
        return [ExpertTensor(name, single["role"], int(single["expert"]), shape)]
    count = min(router.shape) if len(router.shape) == 2 else 0
    inside = _WITHIN.search(name) is not None
    block = _block_of(router.module)
    if not shape or not count or not (inside or name.startswith(block)):
        return []
    role = name[len(block) :].removeprefix("experts.") if name.startswith(block) else name
    # The count is the tensor's, not the router's: zero experts and skips have router rows only.
    if len(shape) == 3 and 2 <= shape[0] <= MOST_EXPERTS:
        return [ExpertTensor(name, role, e, shape[1:], (e, e + 1)) for e in range(shape[0])]
    if not inside:
        return []
    if len(shape) == 2 and _BIAS.search(name):
        return [ExpertTensor(name, role, e, shape[1:], (e, e + 1)) for e in range(shape[0])]
    if len(shape) == 2 and shape[0] > count and shape[0] % count == 0:
        rows = shape[0] // count
        return [
            ExpertTensor(name, role, e, (rows, shape[1]), (e * rows, (e + 1) * rows))
            for e in range(count)
        ]
    return []


def _block_of(module: str) -> str:
    """The path of the module that holds a router, with the final dot."""
    return re.sub(r"(?:gate|router)(?:[._]\w+)*$", "", module)


def _nearest(routers: Sequence[RouterTensors], name: str) -> RouterTensors:
    """The router that shares most leading parts with a name; the first of several."""
    return max(routers, key=lambda router: shared_parts(router.module, name))


def _sorted(tensors: Iterable[ExpertTensor]) -> ExpertTensors:
    by_expert: dict[int, list[ExpertTensor]] = {}
    for tensor in tensors:
        by_expert.setdefault(tensor.expert, []).append(tensor)
    ordered = {
        e: tuple(sorted(held, key=lambda t: t.role)) for e, held in sorted(by_expert.items())
    }
    if not any(t.is_matrix for held in ordered.values() for t in held):
        return ExpertTensors({})
    return ExpertTensors(ordered)
