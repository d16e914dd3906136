"""Checks that every tensor of a checkpoint is used by the model, or known to be unused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from moegeo_cli.checkpoints.accounting import Unused, check_dtypes, check_unused
from moegeo_cli.checkpoints.adapters.moves import describe_moves
from moegeo_cli.checkpoints.effective import EffectiveWeights
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import UnsupportedLayoutError
from moegeo_cli.models.conversion import Source, trace_sources


def account_for(
    model: Any,
    index: WeightIndex,
    *,
    sources: Mapping[str, Source] | None = None,
    missing: Sequence[str] = (),
) -> Unused:
    """Check that every tensor in the files is used by the model or known to be unused.

    Args:
        model: transformers' module tree.
        index: the checkpoint's tensors.
        sources: what `trace_sources` gives for them, where it is at hand.
        missing: parameters that no tensor filled, for the error.

    Returns:
        What is left out, by reason.

    Raises:
        UnsupportedLayoutError: a tensor that nothing uses, or a float parameter that would be
            filled from quantised bytes.
        IncompleteCheckpointError: the same, where parameters are missing as well.
    """
    names = index.names()
    sources = trace_sources(model, names) if sources is None else sources
    used = {name for source in sources.values() for name in source.names}
    held = model.state_dict(keep_vars=True)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = check_unused(
        index,
        [name for name in names if name not in used],
        layers=layers if isinstance(layers, int) else None,
        ignored=_ignored(model),
        missing={n: tuple(held[n].shape) if n in held else () for n in missing},
    )
    check_dtypes(
        index,
        (
            (target, name)
            for target, source in sources.items()
            if target in held and held[target].is_floating_point()
            for name in source.names
        ),
    )
    _refuse_tied(model, index, sources)
    remember(model, index, found.counts)
    return found


def _refuse_tied(model: Any, index: WeightIndex, sources: Mapping[str, Source]) -> None:
    """Refuse an adapter that changes only one use of a tied weight: merging would change both.

    Raises:
        UnsupportedLayoutError: there is one.
    """
    merging = index.merging if isinstance(index, EffectiveWeights) else None
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    if merging is None or not getattr(model.config.get_text_config(), "tie_word_embeddings", True):
        return
    for name in sorted({*tied, *tied.values()} & set(sources)):
        if merging.touched & set(sources[name].names):
            raise UnsupportedLayoutError(
                f"{index.folder.name}: the adapter changes {name}, which the model uses twice "
                "(tied embeddings), so the merged model is not the same as the unmerged one",
                found=", ".join(f"{one} is {other}" for one, other in sorted(tied.items())[:2]),
                hint="untie the embeddings before training, or leave out that target module",
            )


def remember(model: Any, index: WeightIndex, unused: Mapping[str, int]) -> None:
    """Note on a model how its weights were made from the files' tensors.

    Args:
        model: the module tree.
        index: the tensors that it was given.
        unused: reason -> number of tensors that were left out.
    """
    if isinstance(index, EffectiveWeights):
        model.moegeo_weights = index.describe(unused)


def recall(model: Any) -> dict[str, Any] | None:
    """What `remember` noted; None for a model that was given no files."""
    found = getattr(getattr(model, "inner", model), "moegeo_weights", None)
    return dict(found) if found is not None else None


def say_weights(model: Any) -> list[str]:
    """The same in words, if anything was done or left out."""
    found = recall(model)
    if found is None:
        return []
    notes = []
    if found["dequantised"]:
        scheme = ", ".join(found["scheme"])
        notes.append(f"weights: {found['dequantised']} tensors dequantised ({scheme})")
    if found["adapter"]:
        adapter = found["adapter"]
        notes.append(f"weights: {adapter['merged']}; {describe_moves(adapter['moves'])}")
    if found["unwrapped"]:
        notes.append(f"weights: {', '.join(found['unwrapped'])} taken off names")
    notes += [f"weights: {count} tensors left out: {why}" for why, count in found["unused"].items()]
    return notes


def _ignored(model: Any) -> list[str]:
    """Patterns of tensors that the model type's own code leaves out."""
    patterns = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return sorted(pattern for pattern in patterns if _compiles(pattern))


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
