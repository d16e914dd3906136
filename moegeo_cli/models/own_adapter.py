"""`OwnModel`: a user's own module with the interface that the replay uses.

The module's forward takes `input_ids`, by that name or as its first argument, or the probe's
tensors by their names. It returns logits: a tensor, an object with `.logits`, a dict with "logits",
or a tuple that begins with them. For token ids their shape is (batch, positions, vocabulary).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from moegeo_cli.errors import MoegeoError, UnsupportedArchitectureError
from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.models.own_experts import find_own_experts
from moegeo_cli.replay.forms import Inputs, ModelAdapter, first_two
from moegeo_cli.replay.reading import RouterCall, RouterTap
from moegeo_cli.replay.samples import as_batch
from moegeo_cli.routers.finding import Router, find_routers

# Largest difference between a router's logits of a sample alone and in a batch, relative to the
# largest logit, in float32 and in half precision.
AGREEMENT, AGREEMENT_HALF = 1e-4, 0.05
ALONE = "its routers see other values in a batch than alone, so samples are replayed one at a time"


class OwnModel(ModelAdapter):
    """A user's module as the replay calls it; see `ModelAdapter`.

    Args:
        inner: the user's module.
        pattern: pattern of the routers' module names; None to find routers by structure.
        top_k: experts chosen per token, for routers that return only logits.
        scoring: name of the scoring, for routers that return only logits.
    """

    def __init__(
        self, inner: nn.Module, pattern: str | None, top_k: int | None, scoring: str | None
    ) -> None:
        super().__init__()
        self.inner, self.pattern, self.top_k, self.scoring = inner, pattern, top_k, scoring
        parameters = inspect.signature(inner.forward).parameters
        self.ids_by_name = "input_ids" in parameters or any(
            p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
        )
        mask = parameters.get("attention_mask")
        self.needs_mask = mask is not None and mask.default is inspect.Parameter.empty

    @property
    def body(self) -> nn.Module:
        """See `ModelForm`."""
        return self.inner

    def find_routers(self) -> list[Router]:
        """See `ModelAdapter`. Selected experts are computed for routers that return only logits."""
        return find_routers(
            self.inner, pattern=self.pattern, top_k=self.top_k, scoring=self.scoring
        )

    def prepare(self, routers: list[Router], inputs: Inputs) -> None:
        """See `ModelForm`: find out whether samples may share a batch."""
        weight = routers[0].weight_ED
        pair = first_two(inputs, weight.device, weight.dtype)
        self.alone = bool(pair) and not _batches_agree(self, routers, pair)
        if self.alone and ALONE not in self.notes:
            self.notes.append(ALONE)

    def find_experts(
        self, routers: list[Router], inputs: Inputs
    ) -> Mapping[str, ExpertBlock | None]:
        """See `ModelForm`: experts are found and verified on the first sample."""
        weight = routers[0].weight_ED
        sample = as_batch(inputs[0], weight.device, weight.dtype)
        return find_own_experts(self.inner, routers, sample, lambda batch: self(**batch))

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnModel:
        """A deep copy. Tensors with a graph that modules keep as attributes are detached first."""
        for module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor) and not value.is_leaf:
                    vars(module)[name] = value.detach()
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def forward(self, use_cache: bool = False, **inputs: torch.Tensor) -> Any:
        """The user's forward, with `.logits` in its output.

        Args:
            use_cache: ignored.
            inputs: `input_ids`, or the probe's tensors by name.

        Raises:
            UnsupportedArchitectureError: the output has no logits, or none of every position.
        """
        ids = inputs.pop("input_ids", None)
        if ids is None:
            return SimpleNamespace(logits=_logits(self._call(**inputs)))
        if self.needs_mask:  # batches are never padded
            inputs["attention_mask"] = torch.ones_like(ids)
        if self.ids_by_name:
            output = self._call(input_ids=ids, **inputs)
        else:
            output = self._call(ids, **inputs)
        logits = _logits(output)
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise UnsupportedArchitectureError(
                f"{type(self.inner).__name__} does not return logits of every position",
                found=f"shape {tuple(logits.shape)} for input_ids {tuple(ids.shape)}",
                hint="return (batch, positions, vocabulary), with and without labels",
            )
        return SimpleNamespace(logits=logits)

    def _call(self, *arguments: torch.Tensor, **named: torch.Tensor) -> Any:
        """The user's forward. An exception that would end the process becomes a RuntimeError."""
        try:
            return self.inner(*arguments, **named)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit, for instance
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _batches_agree(
    model: nn.Module, routers: list[Router], inputs: Sequence[Mapping[str, torch.Tensor]]
) -> bool:
    """Whether the routers' logits of two samples are the same in a batch of two as alone.

    They are not if samples influence each other (batch statistics, capacity), or if the rows of a
    router are not in the order of the samples.

    Args:
        model: the model.
        routers: its routers.
        inputs: two samples of equal shapes, each as a batch of one.
    """
    both = {name: torch.cat([sample[name] for sample in inputs]) for name in inputs[0]}
    together = _router_logits(model, routers, both)
    alone = [_router_logits(model, routers, sample) for sample in inputs]
    for path, logits in together.items():
        parts = torch.cat([found[path] for found in alone])
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
    """Each router's logits in one forward pass by its path, shape (rows, experts).

    Raises:
        UnsupportedArchitectureError: the model's own code fails.
    """
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
    """The logits in a model's output, in any of the forms of the module's docstring."""
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
