"""Find the adapter of a checkpoint: in its own file, or within the model's weights (not merged)."""

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
    adapter: WeightIndex | None,
    *,
    inner: bool,
    base: WeightIndex,
) -> tuple[Merging | None, dict[str, str]]:
    """Find the adapter of a checkpoint.

    Args:
        stored: the stored tensors of the model.
        names: name without wrappers -> name in the files.
        place: the checkpoint's folder.
        adapter: the tensors of an adapter's own file in that folder; None without one.
        inner: see `unwrap_names`.
        base: see `Merging`.

    Returns:
        The adapter (None without one), and `names` of the base model's tensors alone.

    Raises:
        UnsupportedLayoutError: two adapters, or a kind that moegeo does not merge.
        IncompleteCheckpointError: a part of the adapter is missing or truncated.
    """
    if is_unmerged(names):
        if adapter is not None:
            raise UnsupportedLayoutError(
                f"{place.name} holds one adapter within its weights and one beside them",
                found=adapter.files[0].name,
                hint="keep the one that belongs to the model",
            )
        parts = sort_parts(names, place, alone=False)
        matrices = Matrices(stored, names)
        names = {plain: names[name] for plain, name in parts.base.items()}
    elif adapter is not None:
        own = unwrap_names(adapter.names(), inner=inner).names
        parts, matrices = sort_parts(own, place, alone=True), Matrices(adapter, own)
    else:
        return None, names
    config = read_adapter_config(place)
    return Merging(place, config, parts, matrices, base), names
