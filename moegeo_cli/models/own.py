"""A user's own model as the replay calls it, built by their factory and filled from a checkpoint.

The contract. `factory(config)` is called with the parsed config.json that lies beside the
weights, or None, and gives an `nn.Module`. Its forward takes `input_ids`, by that name or as its
first argument, or the probe's tensors by their names, and gives logits: a tensor, an object with
`.logits`, a dict with "logits", or a tuple that begins with them. For token ids their shape is
(batch, positions, vocabulary).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.accounting import check_dtypes, check_unused_own, known_unused
from moegeo_cli.checkpoints.adapters.layout import ParameterSource
from moegeo_cli.checkpoints.adapters.parts import is_unmerged
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    ShapeError,
    UnsupportedArchitectureError,
    UsageError,
)
from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.global_state import seeded
from moegeo_cli.models.accounting import remember
from moegeo_cli.models.own_experts import find_own_experts
from moegeo_cli.models.sources import ReplayMode
from moegeo_cli.replay.forms import Inputs, ModelAdapter, first_two
from moegeo_cli.replay.reading import RouterCall, RouterTap
from moegeo_cli.replay.samples import as_batch
from moegeo_cli.routers.finding import Router, find_routers

Factory = Callable[[dict[str, Any] | None], nn.Module]
# Logits of a sample alone and in a batch: share of the largest, in float32 and in half precision.
AGREEMENT, AGREEMENT_HALF = 1e-4, 0.05
ALONE = "its routers see other values in a batch than alone, so samples are replayed one at a time"


class OwnModel(ModelAdapter):
    """A user's module, `inner`, with the interface that a replay uses."""

    def __init__(
        self, inner: nn.Module, pattern: str | None, top_k: int | None, scoring: str | None
    ) -> None:
        super().__init__()
        self.inner, self.pattern, self.top_k, self.scoring = inner, pattern, top_k, scoring
        parameters = inspect.signature(inner.forward).parameters
        self.named = "input_ids" in parameters or any(
            p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
        )
        mask = parameters.get("attention_mask")
        self.masked = mask is not None and mask.default is inspect.Parameter.empty

    @property
    def body(self) -> nn.Module:
        """See `ModelForm`."""
        return self.inner

    def find_routers(self) -> list[Router]:
        """Its routers. If one returns logits only, its choice is computed."""
        return find_routers(
            self.inner, pattern=self.pattern, top_k=self.top_k, scoring=self.scoring
        )

    def prepare(self, routers: list[Router], inputs: Inputs) -> None:
        """Find out whether samples may share a batch."""
        weight = routers[0].weight_ED
        pair = first_two(inputs, weight.device, weight.dtype)
        self.alone = bool(pair) and not _batches_agree(self, routers, pair)
        if self.alone and ALONE not in self.notes:
            self.notes.append(ALONE)

    def find_experts(
        self, routers: list[Router], inputs: Inputs
    ) -> Mapping[str, ExpertBlock | None]:
        """See `ModelForm`: asked through their blocks, on the first sample."""
        weight = routers[0].weight_ED
        sample = as_batch(inputs[0], weight.device, weight.dtype)
        return find_own_experts(self.inner, routers, sample, lambda batch: self(**batch))

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnModel:
        """A copy; results of a pass that modules keep as attributes come without their graph."""
        for module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor) and not value.is_leaf:
                    vars(module)[name] = value.detach()
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def forward(self, use_cache: bool = False, **inputs: torch.Tensor) -> Any:
        """The user's forward, its output brought into one form."""
        ids = inputs.pop("input_ids", None)
        if ids is None:
            return SimpleNamespace(logits=_logits(self._call(**inputs)))
        if self.masked:  # nothing is ever padded
            inputs["attention_mask"] = torch.ones_like(ids)
        found = self._call(input_ids=ids, **inputs) if self.named else self._call(ids, **inputs)
        logits = _logits(found)
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise UnsupportedArchitectureError(
                f"{type(self.inner).__name__} does not return logits of every position",
                found=f"shape {tuple(logits.shape)} for input_ids {tuple(ids.shape)}",
                hint="return (batch, positions, vocabulary), with and without labels",
            )
        return SimpleNamespace(logits=logits)

    def _call(self, *arguments: torch.Tensor, **named: torch.Tensor) -> Any:
        """The user's forward. An attempt to leave the process is an error like any other."""
        try:
            return self.inner(*arguments, **named)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit, for instance
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


class OwnModels:
    """Gives a user's model with one checkpoint's weights after another's; see `ModelSource`.

    Args:
        factory: the user's callable.
        name: what it is called.
        pattern: of the routers' module names; None for moegeo's structural rules.
        top_k: experts a token, for routers whose block chooses.
        scoring: likewise.
        device: where the model computes.
        dtype: in which dtype.
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
            IncompleteCheckpointError: the files lack a tensor that the model has.
            ShapeError: a tensor of another shape.
            UsageError: the factory fails or gives something else than a module.
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
        """The model freshly initialised, by the factory's own initialisation."""
        self._built = None
        with seeded(seed):
            return self._build(checkpoint)

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: weights always are in memory."""
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
    """Copy a state dict into a model, one tensor at a time. Returns the names that the model lacks.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is missing.
        ShapeError: a tensor of another shape.
        UnsupportedLayoutError: quantised weights without a scheme, or an adapter that nothing used.
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
            continue  # tied to one that is there
        if index.shape(names[name]) != tuple(tensor.shape):
            raise ShapeError(
                f"{path.name}: the shape of {name} contradicts the model",
                found=f"{index.shape(names[name])} in the file, {tuple(tensor.shape)} in the model",
            )
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(index.read(names[name])))
    left = set(index.names()) - set(names.values()) - set(extra)
    remember(model, index, known_unused(left))
    return extra


def _match_names(saved: Sequence[str], wanted: set[str]) -> dict[str, str]:
    """The model's names -> the file's: equal, or equal without a wrapper's prefix."""
    found = {name: name for name in saved if name in wanted}
    plain = {unwrap_name(name): name for name in wanted}
    for name in saved:
        bare = unwrap_name(name)
        for own in (bare, bare.removeprefix("model.")):
            if own in plain:
                found.setdefault(plain[own], name)
    return found


def _batches_agree(
    model: nn.Module, routers: list[Router], inputs: Sequence[Mapping[str, torch.Tensor]]
) -> bool:
    """Whether routers see the same values in a batch as alone, for two samples of one form.

    It fails where samples influence each other (batch statistics, capacity), and where a router's
    rows do not go sample by sample.
    """
    both = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
    together = _router_logits(model, routers, both)
    alone = [_router_logits(model, routers, one) for one in inputs]
    for path, logits in together.items():
        parts = torch.cat([seen[path] for seen in alone])
        if parts.shape != logits.shape:
            return False
        half = logits.dtype.itemsize < 4
        scale = float(logits.abs().max().clamp_min(1e-30))
        error = float((parts - logits).abs().max())
        if not error <= scale * (AGREEMENT_HALF if half else AGREEMENT):
            return False
    return True


def _router_logits(
    model: nn.Module, routers: list[Router], inputs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[[RouterCall], None]:
        return lambda call: found.__setitem__(path, call.logits_NE)

    taps = [RouterTap(router, keep(router.path)) for router in routers]
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:  # whatever a user's code raises
        if isinstance(error, MoegeoError):
            raise
        raise UnsupportedArchitectureError(
            "the forward pass fails in the model's own code",
            found=f"{type(error).__name__}: {error}"[:300],
            hint="the probe's tensors are given by their names: "
            f"{', '.join(inputs)}; see docs/how-to/own-models.md",
        ) from error
    finally:
        for tap in taps:
            tap.remove()
    return {path: logits.reshape(-1, logits.shape[-1]) for path, logits in found.items()}


def _logits(output: Any) -> torch.Tensor:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Mapping):
        output = output.get("logits")
    found = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(found, torch.Tensor):
        raise UnsupportedArchitectureError(
            "the model returns no logits",
            found=type(output).__name__,
            hint="return a tensor, an object with .logits, or a tuple that begins with them",
        )
    return found
