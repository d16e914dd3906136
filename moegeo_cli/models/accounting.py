"""Check that a model uses every tensor of a checkpoint, and keep on the model how it was filled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from moegeo_cli.checkpoints.accounting import Unused, check_dtypes, check_unused
from moegeo_cli.checkpoints.adapters.moves import describe_moves
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
        sources: result of `trace_sources` for these tensors; None to compute it.
        missing: names of parameters that no tensor fills, for the error message.

    Returns:
        The unused tensors, by reason.

    Raises:
        UnsupportedLayoutError: a tensor is not used and no reason for that is known, or a float
            parameter would be filled from quantised bytes.
        IncompleteCheckpointError: a tensor is not used, and parameters are missing.
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
    attach_weight_facts(model, index, found.counts)
    return found


def _refuse_tied(model: Any, index: WeightIndex, sources: Mapping[str, Source]) -> None:
    """Refuse an adapter that changes only one use of a tied weight: merging would change both.

    Raises:
        UnsupportedLayoutError: the adapter changes a tied weight.
    """
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", True):
        return
    for name in sorted({*tied, *tied.values()} & set(sources)):
        if index.adapted & set(sources[name].names):
            raise UnsupportedLayoutError(
                f"{index.folder.name}: the adapter changes {name}, which the model uses twice "
                "(tied embeddings), so the merged model is not the same as the unmerged one",
                found=", ".join(f"{one} is {other}" for one, other in sorted(tied.items())[:2]),
                hint="untie the embeddings before training, or leave out that target module",
            )


def attach_weight_facts(model: Any, index: WeightIndex, unused: Mapping[str, int]) -> None:
    """Store on a model how its weights were made from the files' tensors.

    Args:
        model: the module tree.
        index: the tensors that fill it.
        unused: reason -> number of tensors that the model does not use.
    """
    facts = index.describe(unused)
    if facts is not None:
        model.moegeo_weights = facts


def weight_facts(model: Any) -> dict[str, Any] | None:
    """The facts of `attach_weight_facts`, for JSON; None for a model that no files filled."""
    found = getattr(getattr(model, "inner", model), "moegeo_weights", None)
    return dict(found) if found is not None else None


def say_weights(model: Any) -> list[str]:
    """The facts of `attach_weight_facts` as notes; [] if all tensors were used unchanged."""
    found = weight_facts(model)
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
    """Patterns of tensor names that the code of the model type declares as unused."""
    patterns = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return sorted(pattern for pattern in patterns if _compiles(pattern))


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
