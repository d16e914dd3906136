"""Account for every stored tensor after a model is loaded: used, known to be unused, or refused.

An unused tensor that is not known may be a scale, an adapter, or a part that the config lacks. The
loaded weights would then not be the model's. The analysis therefore stops and names the tensor.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from moegeo_cli.checkpoints.misplaced import describe_same_shapes, find_same_shape
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, UnsupportedLayoutError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
BEYOND = "multi-token prediction: layers beyond those that the config counts"
BY_TYPE = "transformers leaves them out for this model type"
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.(.+)")
# Modules that only layers of multi-token prediction have.
_PREDICTION = re.compile(r"(?:^|\.)(?:eh_proj|enorm|hnorm|shared_head|e_proj|h_proj)\b")
ADAPTER = re.compile(
    r"(?:^|\.)(?:base_layer|modules_to_save|lora_[A-Za-z]+|adapter\w*|ia3_\w+|hada_\w+|lokr_\w+"
    r"|vera_\w+|oft_\w+|trainable_tokens_\w+)(?=\.|$)"
)
SCALE = re.compile(
    r"(?:scales?|scale_inv|qscale_\w+|scale_2|scb|absmax|zero_?points?|zeros|shift|g_idx|quant_map|qzeros"
    r"|qweight|weight_packed|quant_state\.\w+|weight_format|zp|weight_shape|scale_and_zero)$",
    re.IGNORECASE,
)
STILL = "`moegeo inspect` still describes the checkpoint"


@dataclass(frozen=True, slots=True)
class Unused:
    """Tensors that the model does not use: reason -> names."""

    by_reason: Mapping[str, tuple[str, ...]]

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> number of tensors."""
        return {reason: len(names) for reason, names in self.by_reason.items()}


def check_unused(
    index: WeightIndex,
    unused: Iterable[str],
    *,
    layers: int | None = None,
    ignored: Sequence[str] = (),
    missing: Mapping[str, tuple[int, ...]] | None = None,
) -> Unused:
    """Check that every unused tensor may be left out, and give the reason.

    Args:
        index: the checkpoint's tensors.
        unused: names that no parameter of the model took.
        layers: number of the model's layers; None where the config does not say it.
        ignored: patterns of names that transformers leaves out for the model type.
        missing: name -> shape of the parameters that no tensor filled, for the error.

    Raises:
        UnsupportedLayoutError: an unused tensor for which no reason is known.
        IncompleteCheckpointError: the same, and the model lacks tensors.
    """
    names = sorted(unused)
    prediction = _prediction_layers(names, layers)
    found: dict[str, list[str]] = {}
    unknown = []
    for name in names:
        reason = _reason(name, ignored, prediction)
        if reason is None:
            unknown.append(name)
        else:
            found.setdefault(reason, []).append(name)
    if unknown:
        raise _unused_error(index, unknown, missing or {})
    return Unused({reason: tuple(held) for reason, held in sorted(found.items())})


def check_unused_own(index: WeightIndex, unused: Iterable[str]) -> list[str]:
    """Check the unused tensors of a user's own model, whose files may hold more than the model.

    Args:
        index: the checkpoint's tensors.
        unused: names that the model does not have.

    Returns:
        Names of unused tensors for which no reason is known, for a note in reports.

    Raises:
        UnsupportedLayoutError: an unused tensor is a scale or a part of an adapter.
    """
    names = sorted(unused)
    unknown = [name for name in names if known_reason(name) is None]
    suspicious = [name for name in unknown if _is_suspicious(name)]
    if suspicious:
        raise _unused_error(index, suspicious, {})
    return unknown


def check_dtypes(index: WeightIndex, pairs: Iterable[tuple[str, str]]) -> None:
    """Check that no float parameter is filled from a tensor of integers or 8-bit floats.

    Args:
        index: the checkpoint's tensors.
        pairs: (float parameter, tensor that fills it).

    Raises:
        UnsupportedLayoutError: a tensor has another dtype; its values need a scale.
    """
    wrong = [(target, name) for target, name in pairs if index.dtype(name) not in FLOATS]
    if wrong:
        target, name = wrong[0]
        raise UnsupportedLayoutError(
            f"{index.folder.name}: {len(wrong)} tensors are quantised in a form that moegeo does "
            "not know",
            found=f"{name} of dtype {index.dtype(name)} for {target}",
            hint=f"give the unquantised checkpoint, or one with its scales; {STILL}",
            context={"tensors": [name for _, name in wrong[:64]]},
        )


def known_reason(name: str) -> str | None:
    """Why a tensor of this name may be left out, from unused.toml; None where it may not."""
    return next((reason for reason, pattern in _known() if pattern.search(name)), None)


def known_unused(names: Iterable[str]) -> dict[str, int]:
    """Count the tensors that unused.toml knows by name: reason -> number."""
    found: dict[str, int] = {}
    for name in names:
        reason = known_reason(name)
        if reason is not None:
            found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items()))


def guess_kind(names: Sequence[str]) -> str:
    """What unused tensors probably are, by their names, in words."""
    if any(ADAPTER.search(name) for name in names):
        return "an adapter that was not merged"
    if any(SCALE.search(name) for name in names):
        return "scales of quantised weights"
    return "parts that the model of this config does not have"


def _reason(name: str, ignored: Sequence[str], prediction: frozenset[int]) -> str | None:
    known = known_reason(name)
    if known is not None:
        return known
    match = _LAYER.search(name)
    if match and int(match[1]) in prediction:
        return BEYOND
    if any(re.search(pattern, name) for pattern in ignored) and not _is_suspicious(name):
        return BY_TYPE
    return None


def _is_suspicious(name: str) -> bool:
    return bool(SCALE.search(name) or ADAPTER.search(name))


def _prediction_layers(names: Sequence[str], layers: int | None) -> frozenset[int]:
    """Layers after the model's last that hold modules of multi-token prediction."""
    if layers is None:
        return frozenset()
    found = set()
    for name in names:
        match = _LAYER.search(name)
        if match and int(match[1]) >= layers and _PREDICTION.search(match[2]):
            found.add(int(match[1]))
    return frozenset(found)


def _unused_error(
    index: WeightIndex, unused: Sequence[str], missing: Mapping[str, tuple[int, ...]]
) -> MoegeoError:
    shown = ", ".join(f"{n} ({index.dtype(n)})" for n in unused[:4])
    what = guess_kind(unused)
    context = {"unused": list(unused[:64]), "missing": list(missing)[:64], "look": what}
    more = " …" if len(unused) > 4 else ""
    if missing:
        held = {name: index.shape(name) for name in unused}
        pairs = [(n, name) for n, s in missing.items() if (name := find_same_shape(n, s, held))]
        renamed = f"; {describe_same_shapes(pairs, held)}" if pairs else ""
        return IncompleteCheckpointError(
            f"{index.folder.name}: {len(missing)} tensors that the model needs are not in its "
            f"files, and the model uses none of {len(unused)} other tensors",
            found=f"missing: {', '.join(list(missing)[:3])}; unused: {shown}{more}, {what}"
            + renamed,
            hint=f"{_advise(what)}; {STILL}",
            context=context,
        )
    return UnsupportedLayoutError(
        f"{index.folder.name}: the model does not use {len(unused)} tensors of its files, so the "
        "numbers would be those of another model",
        found=f"{shown}{more}: {what}",
        hint=f"{_advise(what)}; {STILL}",
        context=context,
    )


def _advise(what: str) -> str:
    if "adapter" in what:
        return "merge the adapter where it was trained (peft: merge_and_unload) and save that"
    if "scales" in what:
        return "give the unquantised checkpoint, or one whose form docs/reference/layouts.md lists"
    return "config.json and weights may be of different models: copy them from one source"


@functools.cache
def _known() -> tuple[tuple[str, re.Pattern[str]], ...]:
    text = resources.files(__package__).joinpath("unused.toml").read_text("utf-8")
    return tuple(
        (entry["reason"], re.compile("|".join(f"(?:{p})" for p in entry["patterns"])))
        for entry in tomllib.loads(text)["unused"]
    )
