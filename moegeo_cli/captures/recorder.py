"""`capture_routers`: record the inputs of a model's routers in a training or evaluation loop.

`files` reads what it writes.

Legend: B sequences of a batch, N rows (tokens) of a batch, D router input width, E experts,
K experts selected per token.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from moegeo_cli.captures.files import FORMAT, VERSION
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import MoegeoError, OutputError, UnsupportedArchitectureError, UsageError
from moegeo_cli.replay.calls import called_again
from moegeo_cli.replay.reading import RouterCall, RouterTap
from moegeo_cli.routers.finding import Router, find_routers
from moegeo_cli.store.files import write_atomic_by


class capture_routers:  # noqa: N801 - used like a function: `with capture_routers(...)`
    """Write the inputs of every router to a file, for `moegeo analyze CHECKPOINT --captures FILE`.

    Use it as a context manager, or call `close` at the end. It does not change the model, works
    with and without gradients, and stops at `max_tokens`. An error in it ends the capture with a
    warning and is never raised into the training; batches captured before are kept. The file is
    written at the end, complete or not at all. Memory and file size are about `max_tokens` times
    the sum of the routers' input widths.

    The first axis of the model's first tensor counts the sequences. Padding is left out if
    `attention_mask` is a 2-D tensor. Router calls outside the model's forward pass (activation
    checkpointing) are ignored. A router that is called twice within one forward pass (looped
    depth, a shared block) ends the capture, since one row would stand for two calls.

    Args:
        model: the model, wrapped or not.
        path: the file to write. Give each rank its own file, in one folder.
        max_tokens: largest number of tokens; whole sequences are kept.
        router: pattern of the routers' module names; None to find routers by structure.
        step: the training step; captures are compared with the checkpoint of this step.
        checkpoint: the checkpoint that the model was loaded from, if it was not trained since.

    Attributes:
        domain: name of the domain of the next batches; may be set at any time.
        tokens: number of tokens captured so far.
        full: whether no further tokens are captured.
        problem: why the capture ended early; None where it did not.

    Raises:
        UsageError: `max_tokens` is below 1.
        UnsupportedArchitectureError: the model has no router that is a linear map.
        OutputError: `close` cannot write the file. A `with` block warns instead.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path | str,
        *,
        max_tokens: int = 8192,
        router: str | None = None,
        step: int | None = None,
        checkpoint: Path | str | None = None,
    ) -> None:
        if max_tokens < 1:
            raise UsageError("max_tokens must be at least 1", found=str(max_tokens))
        self.model, self.path, self.max_tokens = model, Path(path), max_tokens
        self.step = step
        self.fingerprint = (
            None if checkpoint is None else Checkpoint(Path(checkpoint)).fingerprint()
        )
        self.domain: str | None = None
        self.tokens = 0
        self.full = False
        self.problem: str | None = None
        self._closed = False
        self._training = False
        self._domains: list[str] = []
        self._named = False  # whether a domain was ever set
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._sequences = 0
        self._calls: dict[str, RouterCall] | None = None  # of the running forward pass
        routers = find_routers(model, pattern=router)
        if not routers:
            raise UnsupportedArchitectureError(
                f"no router was found in {type(model).__name__}",
                hint="name them: capture_routers(..., router='blocks.*.router')",
            )
        self._inputs: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            *(
                RouterTap(own, self._make_hook(own), partial=True, fault=self._end_with_warning)
                for own in routers
            ),
            model.register_forward_hook(self._end),
        ]

    def __enter__(self) -> capture_routers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the file, unless the block raised. If it cannot be written: a warning."""
        self._stop()
        if kind is not None:
            return
        try:
            self.close()
        except OutputError as error:
            self.problem = f"{error.message} (found: {error.found})"
            self._warn(f"{self.problem}; give a path that can be written to")

    def close(self) -> None:
        """Remove the hooks, and write the file if anything was captured.

        Raises:
            OutputError: the file cannot be written.
        """
        self._stop()
        if not self._rows:
            if not self._closed:
                cause = "the model or its routers were not called, or all tokens were padding"
                self._warn(f"nothing was captured: {self.problem or cause}")
            self._closed = True
            return
        self._closed = True
        facts = {
            "version": VERSION, "step": self.step, "fingerprint": self.fingerprint,
            "training": self._training, "domains": self._domains if self._named else None,
        }  # fmt: skip
        rows, self._rows = self._rows, {}
        if not self._named:
            del rows["domains"]
        known = {key: value for key, value in facts.items() if value is not None}
        metadata = {FORMAT: json.dumps(known, sort_keys=True)}

        def write(temporary: Path) -> None:
            try:
                tensors = {name: torch.cat(parts) for name, parts in sorted(rows.items())}
                save_file(tensors, temporary, metadata=metadata)
            except Exception as error:  # safetensors raises its own error for a full disk
                raise OutputError(f"{self.path} cannot be written", found=str(error)) from error

        write_atomic_by(self.path, write)

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._calls = None
        self._inputs = {}

    def _end_with_warning(self, error: Exception) -> None:
        """End the capture with a warning; the training goes on."""
        self.problem = f"{type(error).__name__}: {error}"
        hint = "report this fault of moegeo"
        if isinstance(error, MoegeoError):
            self.problem = error.message + (f" (found: {error.found})" if error.found else "")
            hint = error.hint or "name the routers with router='blocks.*.router'"
        self._stop()
        kept = f"{self.tokens} tokens captured before are kept" if self._rows else "nothing is kept"
        self._warn(f"the capture of router inputs ended early: {self.problem}; {kept}; {hint}")

    def _warn(self, words: str) -> None:
        try:
            warnings.warn(f"moegeo: {words}", RuntimeWarning, stacklevel=3)
        except RuntimeWarning:  # warnings are errors here: do not end the training
            logging.getLogger("moegeo").warning(words)

    def _make_hook(self, router: Router) -> Callable[[RouterCall], None]:
        path = unwrap_name(router.path)

        def take(call: RouterCall) -> None:
            if self._calls is None:
                return
            if path in self._calls:
                raise called_again(router)
            shapes = (call.x_ND.shape[-1], call.logits_NE.shape[-1])
            if shapes != (router.weight_ED.shape[1], router.experts):
                raise UnsupportedArchitectureError(
                    f"the router {path} has inputs and logits of other widths than its weight",
                    found=f"inputs of width {shapes[0]} and {shapes[1]} logits, for a weight of "
                    f"{tuple(router.weight_ED.shape)}",
                    hint="name the module that holds the weight: router='blocks.*.router'",
                )
            self._calls[path] = call

        return take

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            given = {**{str(n): a for n, a in enumerate(args)}, **kwargs}
            tensors = {n: a for n, a in given.items() if isinstance(a, torch.Tensor) and a.ndim}
        except Exception as error:
            self._end_with_warning(error)
            return
        self._inputs = tensors
        self._calls = {}

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls, self._calls = self._calls, None
        inputs, self._inputs = self._inputs, {}
        try:
            if calls:
                self._keep(calls, inputs, training=module.training)
        except Exception as error:
            self._end_with_warning(error)
        if self.tokens >= self.max_tokens:
            self.full = True
        if self.full:
            self._stop()

    def _keep(
        self, calls: Mapping[str, RouterCall], inputs: Mapping[str, torch.Tensor], *, training: bool
    ) -> None:
        """Keep the rows of one forward pass, without padding, as far as they fit."""
        first = inputs.get("input_ids", next(iter(inputs.values()), None))
        counts = {len(call.x_ND) for call in calls.values()}
        if first is None or not len(first) or len(counts) != 1 or next(iter(counts)) % len(first):
            raise UsageError(
                f"routers saw {sorted(counts)} rows of {0 if first is None else len(first)} "
                "sequences: which rows belong to which sequence is not known",
                hint="give the model its batch as a tensor whose first axis is the sequences",
            )
        rows = next(iter(counts))
        width = rows // len(first)
        real_BN = torch.ones(len(first), width, dtype=torch.bool)
        mask = inputs.get("attention_mask")
        if mask is not None and tuple(mask.shape) == (len(first), width):
            real_BN = mask.detach().cpu().bool()
        kept, full = self._find_fitting_rows(real_BN)
        if not bool(kept.any()):  # nothing but padding, or nothing that still fits
            self.full = full
            return
        flat = kept.reshape(-1).nonzero().squeeze(1)
        domain = self.domain or "other"
        domains = self._domains if domain in self._domains else [*self._domains, domain]
        sequence_BN = torch.arange(len(first))[:, None].expand(-1, width) + self._sequences
        found = {
            "sequence": sequence_BN.reshape(-1),
            "domains": torch.full((rows,), domains.index(domain)),
        }
        if first.ndim == 2 and first.shape[1] == width and not first.is_floating_point():
            found["token_ids"] = first.reshape(-1).long()
        for path, call in calls.items():
            found[f"router.{path}.inputs"] = call.x_ND
            found[f"router.{path}.logits"] = call.logits_NE.reshape(rows, -1)
            if call.observed and call.selected_NK.shape[1]:
                found[f"router.{path}.selected"] = call.selected_NK.int()
                found[f"router.{path}.weights"] = call.weights_NK
        self._check_same_form(found, rows)
        chosen = {name: _select_rows(tensor, flat) for name, tensor in found.items()}
        for name, tensor in chosen.items():
            self._rows.setdefault(name, []).append(tensor)
        self._domains, self._named = domains, self._named or self.domain is not None
        self._training |= training
        self._sequences += len(first)
        self.tokens += len(flat)
        self.full = full

    def _check_same_form(self, found: Mapping[str, torch.Tensor], rows: int) -> None:
        """Check that all tensors of a pass have `rows` rows, and the form of earlier passes.

        Raises:
            UsageError: they have not; rows of the file would not belong together.
        """
        hint = "capture passes of one kind: training or evaluation, of one batch format"
        short = [name for name, tensor in found.items() if len(tensor) != rows]
        if short:
            raise UsageError(f"{short[0]} has {len(found[short[0]])} rows of {rows}", hint=hint)
        if not self._rows:
            return
        other = sorted(set(found) ^ set(self._rows))
        if other:
            raise UsageError(
                "the model or its routers gave other tensors than in earlier passes",
                found=", ".join(other[:4]), hint=hint,
            )  # fmt: skip
        for name, tensor in found.items():
            if tensor.shape[1:] != self._rows[name][0].shape[1:]:
                raise UsageError(
                    f"{name} has another width than in earlier passes",
                    found=f"{tuple(tensor.shape[1:])} and {tuple(self._rows[name][0].shape[1:])}",
                    hint=hint,
                )

    def _find_fitting_rows(self, real_BN: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """(mask of the rows that still fit, whether the capture is full).

        Whole sequences are kept. If the first one alone is too long, its start is kept.
        """
        left = self.max_tokens - self.tokens
        kept = real_BN.clone()
        for place, count in enumerate(real_BN.sum(1).tolist()):
            if count <= left:
                left -= count
                continue
            if not self._rows and not bool(kept[:place].any()):
                kept[place] &= real_BN[place].cumsum(0) <= left
                place += 1
            kept[place:] = False
            return kept, True
        return kept, False


def _select_rows(rows: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    own = rows.detach()
    return own.index_select(0, flat.to(own.device)).cpu().contiguous()
