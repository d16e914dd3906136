"""Capture what a model's routers are given, in a training loop or an evaluation of your own.

Legend: B sequences of a batch, N rows that a router sees of it, D router input width, E experts,
K experts chosen per token.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from moegeo_cli.checkpoints.discover import CheckpointFolder
from moegeo_cli.checkpoints.fingerprint import fingerprint
from moegeo_cli.checkpoints.own import strip_wrappers
from moegeo_cli.errors import MoegeoError, OutputError, UnsupportedArchitectureError, UsageError
from moegeo_cli.replay.captures import FORMAT, VERSION
from moegeo_cli.replay.reading import RouterCall, RouterTap
from moegeo_cli.replay.routers import Router, find_routers
from moegeo_cli.store.files import write_atomic_by


class capture_routers:  # noqa: N801 - used like a function: `with capture_routers(...)`
    """Write the inputs of every router to a file, for `moegeo analyze CHECKPOINT --captures FILE`.

    A context manager; or call `close` at the end. It changes nothing of the model, works with
    and without gradients, and stops by itself at `max_tokens`. A fault in it warns and ends the
    capture, never the training. The file is written at the end, whole or not at all; memory and
    file hold about `max_tokens` × the routers' input widths together.

    Sequences are the first axis of the model's first tensor. Where `attention_mask` is given as a
    table, padding is left out. Calls behind the model's own forward pass (activation
    checkpointing) and second calls of a router within it do not count.

    Args:
        model: the model, wrapped or not.
        path: the file to write; give each rank its own, in one folder.
        max_tokens: at most so many, by whole sequences.
        router: the routers, by a pattern over module names; None to find them by structure.
        step: where the run is; captures are compared with the checkpoint of this step.
        checkpoint: the checkpoint that the model was loaded from, if nothing was trained since.

    Attributes:
        domain: name of the domain that the next batches are of; may be set at any time.
        tokens: captured so far.
        full: whether no further tokens are taken.
        problem: why the capture ended early; None where it did not.

    Raises:
        UnsupportedArchitectureError: the model has no router that is a linear map.
        OutputError: the file cannot be written.
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
        self.fingerprint = None if checkpoint is None else _fingerprint(Path(checkpoint))
        self.domain: str | None = None
        self.tokens = 0
        self.full = False
        self.problem: str | None = None
        self._training = False
        self._domains: list[str] = []
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._sequences = 0
        self._calls: dict[str, RouterCall] | None = None  # of the pass that is under way
        routers = find_routers(model, pattern=router)
        if not routers:
            raise UnsupportedArchitectureError(
                f"no router was found in {type(model).__name__}",
                hint="name them: capture_routers(..., router='blocks.*.router')",
            )
        self._inputs: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            *(RouterTap(own, self._taker(own), partial=True) for own in routers),
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
        """Write the file, unless the block was left by an exception."""
        self._stop()
        if kind is None:
            self.close()

    def close(self) -> None:
        """Take the hooks away and write the file, if anything was captured.

        Raises:
            OutputError: it cannot be written.
        """
        self._stop()
        if not self._rows:
            self._warn(self.problem or "the model was not called: nothing was captured")
            return
        facts = {
            "version": VERSION, "step": self.step, "fingerprint": self.fingerprint,
            "training": self._training, "domains": self._domains or None,
        }  # fmt: skip
        tensors = {name: torch.cat(parts) for name, parts in sorted(self._rows.items())}
        self._rows = {}
        known = {key: value for key, value in facts.items() if value is not None}
        metadata = {FORMAT: json.dumps(known, sort_keys=True)}

        def write(temporary: Path) -> None:
            try:
                save_file(tensors, temporary, metadata=metadata)
            except Exception as error:  # the library's own error for a full disk
                raise OutputError(f"{self.path} cannot be written", found=str(error)) from error

        write_atomic_by(self.path, write)

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._calls = None

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self._stop()
        self._warn(f"the capture of router inputs ended early: {problem}")

    def _warn(self, words: str) -> None:
        warnings.warn(f"moegeo: {words}", RuntimeWarning, stacklevel=3)

    def _taker(self, router: Router) -> Callable[[RouterCall], None]:
        path = strip_wrappers(router.path)

        def take(call: RouterCall) -> None:
            if self._calls is not None and path not in self._calls:
                self._calls[path] = call

        return take

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = {**{str(n): a for n, a in enumerate(args)}, **kwargs}
        tensors = {n: a for n, a in given.items() if isinstance(a, torch.Tensor) and a.ndim}
        self._inputs = tensors
        self._calls = {}

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls, self._calls = self._calls, None
        if not calls:
            return
        try:
            self._keep(calls, training=module.training)
        except Exception as error:  # whatever is wrong, the training goes on
            words = error.message if isinstance(error, MoegeoError) else str(error)
            self._fail(words)
        if self.tokens >= self.max_tokens:
            self.full = True
        if self.full:
            self._stop()

    def _keep(self, calls: Mapping[str, RouterCall], *, training: bool) -> None:
        """The rows of one pass, padding left out, as far as they fit."""
        first = self._inputs.get("input_ids", next(iter(self._inputs.values()), None))
        counts = {len(call.x_ND) for call in calls.values()}
        if first is None or len(counts) != 1 or next(iter(counts)) % len(first):
            raise UsageError(
                f"routers saw {sorted(counts)} rows of {0 if first is None else len(first)} "
                "sequences: which rows belong to which cannot be told"
            )
        known = {f"router.{path}.inputs" for path in calls}
        if self._rows and known != {name for name in self._rows if name.endswith(".inputs")}:
            raise UsageError("another set of routers was called than in the passes before")
        rows = next(iter(counts))
        width = rows // len(first)
        real_BN = torch.ones(len(first), width, dtype=torch.bool)
        mask = self._inputs.get("attention_mask")
        if mask is not None and tuple(mask.shape) == (len(first), width):
            real_BN = mask.detach().cpu().bool()
        kept = self._fit(real_BN)
        if not bool(kept.any()):
            self.full = True
            return
        self._training |= training
        flat = kept.reshape(-1).nonzero().squeeze(1)
        sequence_BN = torch.arange(len(first))[:, None].expand(-1, width) + self._sequences
        self._sequences += len(first)
        self._add("sequence", sequence_BN.reshape(-1), flat)
        if first.ndim == 2 and first.shape[1] == width and not first.is_floating_point():
            self._add("token_ids", first.detach().cpu().reshape(-1).long(), flat)
        name = self.domain or "other"
        if name not in self._domains and (self.domain or self._domains):
            self._domains.append(name)
        if self._domains:
            self._add("domains", torch.full((rows,), self._domains.index(name)), flat)
        for path, call in calls.items():
            self._add(f"router.{path}.inputs", call.x_ND, flat)
            logits = call.logits_NE.reshape(rows, -1)
            self._add(f"router.{path}.logits", logits, flat)
            if call.observed and call.selected_NK.shape[1]:
                self._add(f"router.{path}.selected", call.selected_NK.int(), flat)
                self._add(f"router.{path}.weights", call.weights_NK, flat)
        self.tokens += len(flat)

    def _fit(self, real_BN: torch.Tensor) -> torch.Tensor:
        """The rows that still fit: whole sequences, or the start of the very first one."""
        left = self.max_tokens - self.tokens
        kept = real_BN.clone()
        for place, count in enumerate(real_BN.sum(1).tolist()):
            if count <= left:
                left -= count
                continue
            if not self._rows and place == 0:
                kept[0] &= real_BN[0].cumsum(0) <= left
                place, left = 1, 0
            kept[place:] = False
            self.full = True
            break
        return kept

    def _add(self, name: str, rows: torch.Tensor, flat: torch.Tensor) -> None:
        own = rows.detach()
        chosen = own.index_select(0, flat.to(own.device)).cpu().contiguous()
        self._rows.setdefault(name, []).append(chosen)


def _fingerprint(checkpoint: Path) -> str:
    return fingerprint(CheckpointFolder(checkpoint, None, "."))
