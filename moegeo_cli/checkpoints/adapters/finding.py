"""The adapter of a checkpoint: beside its weights, or within them."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.checkpoints.adapters.changes import Matrices
from moegeo_cli.checkpoints.adapters.config import read_adapter_config
from moegeo_cli.checkpoints.adapters.merging import Merging
from moegeo_cli.checkpoints.adapters.parts import is_unmerged, sort_parts
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.checkpoints.wrappers import unwrap_names
from moegeo_cli.errors import UnsupportedLayoutError


def find_adapter(
    stored: WeightIndex,
    names: dict[str, str],
    place: Path,
    beside: WeightIndex | None,
    *,
    inner: bool,
    base: WeightIndex,
) -> tuple[Merging | None, dict[str, str]]:
    """The adapter, and the names of the base model's tensors without it.

    Args:
        stored: the weights' own tensors.
        names: without wrappers -> in the files.
        place: the checkpoint's folder.
        beside: the tensors of an adapter's own file in it; None without one.
        inner: see `unwrap_names`.
        base: see `Merging`.

    Raises:
        UnsupportedLayoutError: two adapters, or one of a kind that is not merged.
        IncompleteCheckpointError: a part of it is missing or cut.
    """
    if is_unmerged(names):
        if beside is not None:
            raise UnsupportedLayoutError(
                f"{place.name} holds one adapter within its weights and one beside them",
                found=beside.files[0].name,
                hint="keep the one that belongs to the model",
            )
        parts = sort_parts(names, place, alone=False)
        matrices = Matrices(stored, names)
        names = {plain: names[name] for plain, name in parts.base.items()}
    elif beside is not None:
        own = unwrap_names(beside.names(), inner=inner).names
        parts, matrices = sort_parts(own, place, alone=True), Matrices(beside, own)
    else:
        return None, names
    config = read_adapter_config(place)
    return Merging(place, config, parts, matrices, base), names
