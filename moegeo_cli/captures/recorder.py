"""`capture_routers`: record the inputs of a model's routers in a training or evaluation loop.

`buffer` holds the recorded rows and writes them to a file, which `files` reads.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from moegeo_cli.captures.buffer import RowBuffer
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import MoegeoError, OutputError, UnsupportedArchitectureError, UsageError
from moegeo_cli.replay.calls import called_again
from moegeo_cli.replay.reading import RouterCall, RouterTap
from moegeo_cli.routers.finding import Router, find_routers


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
        self.model, self.path, self.step = model, Path(path), step
        self.fingerprint = (
            None if checkpoint is None else Checkpoint(Path(checkpoint)).fingerprint()
        )
        self.domain: str | None = None
        self.problem: str | None = None
        self._closed = False
        self._buffer = RowBuffer(max_tokens)
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

    @property
    def tokens(self) -> int:
        """See the attributes."""
        return self._buffer.tokens

    @property
    def full(self) -> bool:
        """See the attributes."""
        return self._buffer.full

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
        closed, self._closed = self._closed, True
        if self._buffer.rows:
            self._buffer.write(self.path, step=self.step, fingerprint=self.fingerprint)
        elif not closed:
            cause = "the model or its routers were not called, or all tokens were padding"
            self._warn(f"nothing was captured: {self.problem or cause}")

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
        kept = (
            f"{self.tokens} tokens captured before are kept"
            if self._buffer.rows
            else "nothing is kept"
        )
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
                self._buffer.add(calls, inputs, self.domain, training=module.training)
        except Exception as error:
            self._end_with_warning(error)
        if self.full:
            self._stop()
