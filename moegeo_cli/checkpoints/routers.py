"""Find the routers of a checkpoint by tensor names, and check them against the config.

This runs before a model is loaded: transformers gives a router that is missing from the files
random weights, and measuring would not notice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.bias_names import FILE_NAMES
from moegeo_cli.checkpoints.misplaced import (
    describe_same_shapes,
    find_same_shape,
    layer_path,
    shared_parts,
)
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, ShapeError, UnsupportedLayoutError

# Names of router modules in files, over all families.
_ROUTER = re.compile(
    r"^(?P<module>(?:.*\.)?(?:gate|router)(?:\.(?:gate|wg|layer|classifier|proj))?"
    r"|(?:.*\.)?router_gate|(?:.*\.)?router_mlp\.out_proj)\.weight(?:_1)?$"
    r"|^(?P<flat>(?:.*\.)?mlp)\.gate_weight$"
)
_SELECTION_BIAS = re.compile(rf"(?:^|\.)(?:{'|'.join(FILE_NAMES)})(?:_1)?$")
# Output gates of attention layers and of shared experts: no routers.
_OTHER_GATE = re.compile(r"(?:attn|attention|shared_experts?|shared_mlp)\.(?:gate|router)\.")
_EXPERTS = re.compile(r"\.experts\.")
_PACKED = re.compile(
    r"(?:^|\.)(?:gate|router)(?:\.\w+)?\.(?:qweight|weight_packed|weight_quantized)$"
)
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# Parts that text does not pass (images, sound), and multi-token prediction.
OTHER_TOWER = re.compile(r"(?:^|\.)(?:visual|vision|audio|mtp|talker|code2wav)[^.]*\.")


@dataclass(frozen=True, slots=True)
class RouterTensors:
    """The tensors of one router.

    Attributes:
        layer: the layer's index; None where the name holds none.
        module: path of the router's module in the files.
        weight: name of its weight.
        shape: shape of the weight, normally (rows, hidden).
        bias: name of the bias that is added to the logits; None without one.
        selection_bias: name of the bias that acts on the selection alone; None without one.
        main: whether the router is in the language model's own layers. False for another tower
            and for multi-token prediction.
    """

    layer: int | None
    module: str
    weight: str
    shape: tuple[int, ...]
    bias: str | None = None
    selection_bias: str | None = None
    main: bool = True


def find_router_tensors(
    index: WeightIndex, architecture: Architecture | None = None
) -> tuple[RouterTensors, ...]:
    """Find the routers among a checkpoint's tensors.

    Args:
        index: the checkpoint's tensors.
        architecture: the model, where it is known. It tells whether a router's `bias` is added to
            the logits or acts on the selection, and which layers are the model's own.

    Returns:
        The routers: the language model's by layer, then the others.
    """
    names = index.names()
    by_layer: dict[str, list[str]] = {}
    for name in names:
        by_layer.setdefault(layer_path(name), []).append(name)
    routers = []
    for name in names:
        match = _ROUTER.match(name)
        if match is None or len(index.shape(name)) != 2 or _OTHER_GATE.search(name):
            continue
        module = match["module"] or match["flat"]
        layer = layer_of(module)
        beyond = (
            architecture is not None
            and architecture.layers is not None
            and layer is not None
            and layer >= architecture.layers
        )
        bias, selection = _find_biases(by_layer.get(layer_path(module), ()), module, architecture)
        routers.append(
            RouterTensors(
                layer=layer,
                module=module,
                weight=name,
                shape=index.shape(name),
                bias=bias,
                selection_bias=selection,
                # ernie's second weight (`_1`) routes image tokens
                main=not beyond and not name.endswith("_1") and not OTHER_TOWER.search(module),
            )
        )
    return tuple(sorted(routers, key=lambda r: (not r.main, r.layer or 0, r.module)))


def check_routers(index: WeightIndex, architecture: Architecture) -> tuple[RouterTensors, ...]:
    """Check that every MoE layer has a router of the shape that the config says.

    Returns:
        The routers of the language model, by layer.

    Raises:
        IncompleteCheckpointError: a tensor of a router is missing; the error names it.
        ShapeError: the shape of a router contradicts the config.
        UnsupportedLayoutError: the routers are quantised, or `index.obstacle` says why no model
            can be loaded.
    """
    if index.obstacle is not None:
        raise index.obstacle
    found = find_router_tensors(index, architecture)
    routers = tuple(router for router in found if router.main)
    present = {router.layer for router in routers}
    names = [
        _expected_name(index, routers, architecture, layer)
        for layer in architecture.moe_layers or ()
        if layer not in present
    ] or _experts_without_router(index, routers)
    if names or not routers:
        _refuse_quantised(index)
        raise _missing_error(index, architecture, names, len(routers))
    for router in routers:
        if index.dtype(router.weight) not in _FLOATS:
            raise _quantised_error(router.weight, index.dtype(router.weight))
        _check_shape(router, architecture)
    if architecture.selection.bias and architecture.known:
        _check_selection_bias(index, routers, architecture)
    return routers


def _refuse_quantised(index: WeightIndex) -> None:
    """Raise if the files hold routers packed into integers."""
    for name in index.names():
        if _PACKED.search(name):
            raise _quantised_error(name, index.dtype(name))


def _quantised_error(name: str, dtype: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        "the checkpoint's routers are quantised, so their logits cannot be measured correctly",
        found=f"{name} of dtype {dtype}",
        hint="give the unquantised checkpoint, or one whose routers are not quantised",
        context={"tensor": name},
    )


def layer_of(name: str) -> int | None:
    """The last layer number in a name; None where there is none."""
    path = layer_path(name)
    return int(path.rpartition(".")[2]) if path else None


def _find_biases(
    names: Sequence[str], module: str, architecture: Architecture | None
) -> tuple[str | None, str | None]:
    """(bias added to the logits, bias of the selection), by tensor names.

    A selection bias lies in the router, in its block or in the experts. Where a layer has several,
    the one that shares most of its name with the router belongs to it.

    Args:
        names: the tensors of the router's layer.
        module: path of the router's module.
        architecture: the model, where it is known.
    """
    plain = f"{module}.bias"
    bias = plain if plain in names else None
    named = [name for name in names if _SELECTION_BIAS.search(name)]
    named.sort(key=lambda name: (-shared_parts(name, module), name))
    if named:
        return bias, named[0]
    if bias and architecture is not None and architecture.selection.bias:
        return None, bias  # some families save the selection bias as the router's own
    return bias, None


def _experts_without_router(index: WeightIndex, routers: tuple[RouterTensors, ...]) -> list[str]:
    """Expected router names of layers that hold experts but no router."""
    towers = {router.module.partition(".")[0] for router in routers}
    present = {layer_path(router.module) for router in routers}
    experts = {
        layer_path(name)
        for name in index.names()
        if _EXPERTS.search(name)
        and name.partition(".")[0] in towers
        and not OTHER_TOWER.search(name)
    }
    return [f"{path}.*router.weight" for path in sorted(experts - present) if path]


def _expected_name(
    index: WeightIndex, routers: tuple[RouterTensors, ...], architecture: Architecture, layer: int
) -> str:
    """The name of a missing router, derived from the other routers or from families/."""
    for router in routers:
        if router.layer is not None:
            start, _, end = router.weight.rpartition(f".{router.layer}.")
            return f"{start}.{layer}.{end}"
    own = f"{architecture.router_path or 'router'}.weight"
    paths = {
        layer_path(name)
        for name in index.names()
        if layer_of(name) == layer and not OTHER_TOWER.search(name)
    }
    return f"{paths.pop()}.{own}" if len(paths) == 1 else f"(layer {layer}) {own}"


def _missing_error(
    index: WeightIndex, architecture: Architecture, names: Sequence[str], found: int
) -> IncompleteCheckpointError:
    """The error for missing routers; it names tensors that may be them under another name."""
    rows = None if architecture.experts_by_layer else architecture.router_rows
    shape = (rows, architecture.hidden)
    held = {
        name: index.shape(name)
        for name in index.names()
        if len(index.shape(name)) == 2 and not OTHER_TOWER.search(name)
    }
    paths = sorted({layer_path(name) for name in held} - {""})
    wanted = names or [f"{path}.router.weight" for path in paths]
    renamed = [(n, other) for n in wanted if (other := find_same_shape(n, shape, held))]
    headline = f"the checkpoint lacks {len(names)} routers: {', '.join(names[:4])}"
    if not names:
        headline = f"the checkpoint holds no router, but {architecture.text_type} has routers"
    hint = "save or download the checkpoint again; a random router would be measured instead"
    if renamed:
        missing, name = renamed[0]
        hint = f"if {name} is the router, save it as {missing}, and rename the others likewise"
    return IncompleteCheckpointError(
        headline,
        found=f"{found} routers among {len(index)} tensors"
        + (f"; {describe_same_shapes(renamed, held)}" if renamed else ""),
        hint=hint,
        context={"missing": names, "stand_ins": dict(renamed)},
    )


def _check_shape(router: RouterTensors, architecture: Architecture) -> None:
    rows, hidden = architecture.rows_in(router.layer), architecture.hidden
    shape = router.shape
    fits = shape[0] == rows and (hidden is None or shape[1] == hidden)
    transposed = shape[1] == rows and (hidden is None or shape[0] == hidden)
    if not (fits or transposed or (not architecture.known and rows in shape)):
        if architecture.text_type in _FREE_WIDTH and shape[0] == rows:
            return
        raise ShapeError(
            f"{router.weight} contradicts the config",
            found=f"shape {list(shape)}; the config says {rows} experts"
            + (f" and hidden size {hidden}" if hidden else "")
            + "".join(f"; {conflict}" for conflict in architecture.conflicts),
            hint="config.json and weights are of different models: copy them from one source",
            context={"tensor": router.weight, "shape": list(shape)},
        )


# Families whose routers read something narrower or wider than the hidden state.
_FREE_WIDTH = frozenset({"zaya", "muse_spark_text", "nemotron_h"})


def _check_selection_bias(
    index: WeightIndex, routers: tuple[RouterTensors, ...], architecture: Architecture
) -> None:
    """Check that all routers have a selection bias or none has, and that its length is right."""
    lacking = [
        router
        for router in routers
        if router.selection_bias is None and router.layer not in architecture.hash_layers
    ]
    having = [router for router in routers if router.selection_bias is not None]
    if having and lacking:
        raise IncompleteCheckpointError(
            f"the selection bias of {lacking[0].module} is missing from the files",
            found=f"{len(having)} of {len(routers)} routers have one",
            hint="save or download the checkpoint again",
            context={"missing": [router.module for router in lacking]},
        )
    for router in having:
        shape = index.shape(router.selection_bias or "")
        counts = {architecture.rows_in(router.layer), architecture.experts_in(router.layer)}
        if shape[-1:] not in {(count,) for count in counts}:
            raise ShapeError(
                f"{router.selection_bias} contradicts the config",
                found=f"shape {list(shape)} for {min(counts)} experts",
                hint="config.json and weights are of different models",
            )
