"""Fill parameters of a module tree from a checkpoint's files, a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.experts import check_expert_shapes
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError, ShapeError
from moegeo_cli.models.accounting import account_for
from moegeo_cli.models.adapting import trace_model
from moegeo_cli.models.conversion import convert_into, quiet_transformers, trace_sources
from moegeo_cli.models.stored import StoredTensor, prefetch
from moegeo_cli.replay.out_of_memory import is_out_of_memory

LARGE = 2**22  # elements of a parameter that is converted alone


class LayerFiles:
    """Fills parameters of a module tree from a checkpoint's files, and empties them again.

    Args:
        model: transformers' module tree; empty parameters are on the meta device.
        checkpoint: the checkpoint.
        device: device of filled parameters.
        dtype: dtype of filled parameters, except those that the model keeps in float32.
        ahead: whether `prefetch` reads tensors in a thread, so that an accelerator does not wait
            for the files and the copies; else the operating system prefetches the files.

    Raises:
        MoegeoError: the files cannot be opened, or do not fit the model; see
            `accounting.account_for`.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        ahead: bool = False,
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.checkpoint, self.index = checkpoint, checkpoint.weights
        self.name = checkpoint.path.name
        if self.index.obstacle is not None:
            raise self.index.obstacle
        self.index.resolve(partial(trace_model, model))
        self.index.check_type(str(model.config.model_type))
        with quiet_transformers():
            self.sources = trace_sources(model, self.index.names())
            account_for(model, self.index, sources=self.sources)
        self._reader = ThreadPoolExecutor(1, "moegeo-read-ahead") if ahead else None
        self._reading: dict[str, Future[torch.Tensor]] = {}

    def load(self, targets: Iterable[str]) -> None:
        """Fill parameters. Parameters that no file holds are not changed.

        Large parameters are converted one by one, because saved and converted tensors are in memory
        together.

        Args:
            targets: names of the parameters.

        Raises:
            IncompleteCheckpointError: saved tensors cannot be converted.
            ShapeError: a tensor's shape contradicts the config.
        """
        together: dict[str, Any] = {}
        for target in sorted(set(targets) & set(self.sources)):
            names = self.sources[target].names
            state = {n: self._stored(n) for n in names}
            if self.elements(target) >= LARGE:
                self._convert(state)
            else:
                together |= state
        self._convert(together)

    def groups(self, most: int) -> Iterator[list[str]]:
        """Groups of parameters to load together.

        Args:
            most: largest number of bytes of a group, unless it is a single parameter.
        """
        group: list[str] = []
        held = 0
        for target in sorted(self.sources):
            size = self.elements(target) * self.dtype.itemsize
            if group and held + size > most:
                yield group
                group, held = [], 0
            group.append(target)
            held += size
        if group:
            yield group

    def elements(self, target: str) -> int:
        """Number of saved elements that make a parameter."""
        return sum(self.index.info(n).elements for n in self.sources[target].names)

    def load_rows(self, names: Mapping[str, tuple[int, int]]) -> None:
        """Load some experts of fused parameters.

        Args:
            names: name of a parameter -> (start, stop) of its experts. The parameter in the module
                tree must have the shape of these experts alone.
        """
        state: dict[str, Any] = {}
        for name, (start, stop) in names.items():
            for pattern in self.sources[name].patterns.values():
                if len(pattern) > 1:  # saved one by one
                    state |= {n: StoredTensor(self.index, n) for n in pattern[start:stop]}
                else:
                    state[pattern[0]] = StoredTensor(self.index, pattern[0], (start, stop))
        self._convert(state)

    def release(self, names: Iterable[str]) -> None:
        """Free parameters, by moving them to the meta device."""
        for name in names:
            path, _, own = name.rpartition(".")
            module = self.model.get_submodule(path)
            table: Any = module._parameters if own in module._parameters else module._buffers
            held = table.get(own)
            if held is None or held.device.type == "meta":
                continue
            empty = torch.empty_like(held, device="meta")
            table[own] = nn.Parameter(empty, False) if table is module._parameters else empty

    def refuse_missing(self, names: Iterable[str]) -> None:
        """Check that parameters are filled.

        Args:
            names: names of the parameters.

        Raises:
            IncompleteCheckpointError: no file holds one of them.
        """
        tensors = named_tensors(self.model)
        missing = sorted(n for n in names if n in tensors and tensors[n].device.type == "meta")
        if missing:
            check_expert_shapes(self.index)
            raise IncompleteCheckpointError(
                f"{self.name}: {len(missing)} tensors that the model needs are not in its files",
                found=f"missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
                hint="save the checkpoint again with model.save_pretrained",
            )

    def prefetch(self, targets: Iterable[str]) -> None:
        """Start to read the tensors that fill these parameters, by the system or in a thread."""
        held = [self.sources[t] for t in targets if t in self.sources]
        names = [name for source in held for name in source.names]
        if self._reader is None:
            prefetch(self.index, names)
            return
        for name in names:
            if name not in self._reading:
                self._reading[name] = self._reader.submit(self._read, name)

    def _stored(self, name: str) -> Any:
        """An object whose `[...]` is the tensor: prefetched, or read from the file."""
        reading = self._reading.pop(name, None)
        return (
            StoredTensor(self.index, name) if reading is None else _Prefetched(reading, self.device)
        )

    def _read(self, name: str) -> torch.Tensor:
        values = StoredTensor(self.index, name)[...]
        return values.pin_memory() if self.device.type == "cuda" else values

    def _convert(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        # Converting resets requires_grad, which a pass sets on routers.
        with_grad = {id(p) for p in self.model.parameters() if p.requires_grad}
        try:
            with quiet_transformers():
                report = convert_into(self.model, state, self.device, self.dtype)
        except MoegeoError:
            raise
        except Exception as error:
            if is_out_of_memory(error):  # the pass is then tried with smaller batches
                raise
            check_expert_shapes(self.index)
            raise IncompleteCheckpointError(
                f"{self.name}: its tensors cannot be converted",
                found=f"{type(error).__name__}: {str(error)[:200]}",
                hint="save the checkpoint again with model.save_pretrained",
            ) from error
        if report.mismatched_keys:
            check_expert_shapes(self.index)
            name, saved, wanted = sorted(report.mismatched_keys)[0]
            raise ShapeError(
                f"{self.name}: the shape of {name} contradicts the config",
                found=f"{tuple(saved)} in the file, {tuple(wanted)} by the config",
            )
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in with_grad)


class _Prefetched:
    """A tensor that a thread reads; `[...]` copies it to the device asynchronously."""

    def __init__(self, reading: Future[torch.Tensor], device: torch.device) -> None:
        self._reading, self._device = reading, device

    def __getitem__(self, key: Any) -> torch.Tensor:
        return self._reading.result().to(self._device, non_blocking=True)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name; a shared one is listed under each of its names."""
    return dict(model.state_dict(keep_vars=True))
