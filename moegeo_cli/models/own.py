"""`OwnModels`: builds a user's own model with their factory, and fills it from checkpoints.

`factory(config)` is called with the parsed config.json that lies beside the weights, or with None
if there is none, and returns an `nn.Module`. `own_adapter.py` says what its forward takes and
returns.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.accounting import check_dtypes, check_unused_own, known_unused
from moegeo_cli.checkpoints.adapters.layout import ParameterSource
from moegeo_cli.checkpoints.adapters.parts import is_unmerged
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, ShapeError, UsageError
from moegeo_cli.global_state import seeded
from moegeo_cli.models.accounting import attach_weight_facts
from moegeo_cli.models.own_adapter import OwnModel
from moegeo_cli.models.sources import ReplayMode

Factory = Callable[[dict[str, Any] | None], nn.Module]


class OwnModels:
    """Loads a user's model with the weights of one checkpoint after another; see `ModelSource`.

    Args:
        factory: the user's callable.
        name: its name, for errors.
        pattern: pattern of the routers' module names; None to find routers by structure.
        top_k: experts chosen per token, for routers that return only logits.
        scoring: name of the scoring, for routers that return only logits.
        device: device of the weights and the computation.
        dtype: dtype of the weights and the computation.
    """

    mode = ReplayMode(
        form="own", unplanned="what a model of your own takes is not known beforehand"
    )

    def __init__(
        self,
        factory: Factory,
        name: str,
        *,
        pattern: str | None,
        top_k: int | None,
        scoring: str | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.factory, self.name, self.device, self.dtype = factory, name, device, dtype
        self.options = (pattern, top_k, scoring)
        self._built: OwnModel | None = None

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The model with a checkpoint's weights.

        Raises:
            IncompleteCheckpointError: the files lack a tensor of the model.
            ShapeError: a tensor has another shape in the files than in the model.
            UnsupportedLayoutError: as `load_state`.
            UsageError: the factory fails, or does not return a module.
        """
        model = self._built or self._build(checkpoint)
        extra = load_state(model.inner, checkpoint)
        model.notes = []
        if extra:
            shown = ", ".join(extra[:3]) + (" …" if len(extra) > 3 else "")
            model.notes.append(f"{len(extra)} tensors of the files are not the model's: {shown}")
        self._built = model
        return model

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`: the model as the factory initialises it."""
        self._built = None
        with seeded(seed):
            return self._build(checkpoint)

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: all weights are always in memory."""
        return contextlib.nullcontext()

    def _build(self, checkpoint: Checkpoint) -> OwnModel:
        try:
            inner: Any = self.factory(copy.deepcopy(checkpoint.config) or None)
        except (MoegeoError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit included
            raise UsageError(
                f"--model {self.name} fails to build the model",
                found=f"{type(error).__name__}: {error}"[:300],
                hint="moegeo calls it with the parsed config.json, None where there is none",
            ) from error
        if not isinstance(inner, nn.Module):
            raise UsageError(
                f"--model {self.name} gives no torch.nn.Module", found=type(inner).__name__
            )
        model = OwnModel(inner, *self.options)
        return model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)


def load_state(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Copy a checkpoint's tensors into a model, one at a time.

    Args:
        model: the user's module.
        checkpoint: the checkpoint.

    Returns:
        Names of tensors in the files that the model does not have, for a note.

    Raises:
        IncompleteCheckpointError: the files lack a tensor of the model.
        ShapeError: a tensor has another shape in the files than in the model.
        UnsupportedLayoutError: quantised weights are in a form that is not read, or the model does
            not use an adapter in the files.
    """
    wanted = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}

    def fill(index: WeightIndex) -> Mapping[str, ParameterSource]:
        found = _match_names(index.names(), set(wanted))
        return {
            unwrap_name(name): ParameterSource(tuple(tensor.shape), ((found[name],),))
            for name, tensor in wanted.items()
            if name in found
        }

    index, path = checkpoint.effective(merge=not is_unmerged(wanted)), checkpoint.path
    if index.obstacle is not None:
        raise index.obstacle
    index.resolve(fill)
    names = _match_names(index.names(), set(wanted))
    shared = {t.data_ptr() for name, t in wanted.items() if name in names and t.numel()}
    missing = sorted(
        name for name, t in wanted.items()
        if name not in names and not (t.numel() and t.data_ptr() in shared)
    )  # fmt: skip
    if missing:
        extra = sorted(set(index.names()) - set(names.values()))
        raise IncompleteCheckpointError(
            f"{path.name}: {len(missing)} tensors that the model needs are not in its files",
            found=f"missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
            + (f"; in the files alone: {', '.join(extra[:3])}" if extra else ""),
            hint="the factory must build the model that was saved, with the same module names",
        )
    extra = check_unused_own(index, set(index.names()) - set(names.values()))
    floats = {name for name, tensor in wanted.items() if tensor.is_floating_point()}
    check_dtypes(index, ((name, saved) for name, saved in names.items() if name in floats))
    for name, tensor in wanted.items():
        if name not in names:
            continue  # tied to a tensor that the files hold
        if index.shape(names[name]) != tuple(tensor.shape):
            raise ShapeError(
                f"{path.name}: the shape of {name} contradicts the model",
                found=f"{index.shape(names[name])} in the file, {tuple(tensor.shape)} in the model",
            )
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(index.read(names[name])))
    left = set(index.names()) - set(names.values()) - set(extra)
    attach_weight_facts(model, index, known_unused(left))
    return extra


def _match_names(saved: Sequence[str], wanted: set[str]) -> dict[str, str]:
    """Name in the model -> name in the files: equal, or equal without prefixes of wrappers."""
    found = {name: name for name in saved if name in wanted}
    plain = {unwrap_name(name): name for name in wanted}
    for name in saved:
        bare = unwrap_name(name)
        for own in (bare, bare.removeprefix("model.")):
            if own in plain:
                found.setdefault(plain[own], name)
    return found
