"""A model with one layer in memory at a time; the others stay in the checkpoint's files.

To run one layer, the model's whole forward is called. Earlier layers return their recorded output
instead of computing, and the forward ends after the wanted layer. So code around the layers is the
model's own; it runs again for each layer, which is cheap.

Embeddings, norms, head and routers are resident: they stay in memory. The other parameters of a
layer are loaded and released.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from moegeo_cli.checkpoints.bias_names import MODULE_NAMES
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.routers import OTHER_TOWER
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers
from moegeo_cli.models.memory.streamed import PartSizes, score_bytes
from moegeo_cli.models.streaming.expert_stream import ExpertChunks, chunked_parameters
from moegeo_cli.models.streaming.layer_files import LayerFiles, named_tensors
from moegeo_cli.replay.kernels import compute_experts_by
from moegeo_cli.routers.finding import LAYER_INDEX, find_routers


class _Reached(BaseException):  # not an Exception, which a model's code might catch
    """Raised by the wanted layer to end the forward; carries its output."""

    def __init__(self, output: Any) -> None:
        self.output = output


class LayerStream:
    """The model of a checkpoint, one layer at a time.

    Args:
        checkpoint: a checkpoint of the run, whose config describes the model.
        device: device of the weights and the computation.
        dtype: dtype of the weights and the computation.

    Attributes:
        model: the module tree; parameters that are not loaded are on the meta device.
        layers: the layers that are loaded and released, in the order in which the model runs them.
        paths: their module paths.
        resident: names of the parameters that stay in memory.

    Raises:
        UnsupportedArchitectureError: the routers are not in numbered layers.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.ahead = device.type != "cpu"  # on a CPU, the system's prefetching is enough
        with quiet_transformers():
            self.model = build_skeleton(checkpoint, dtype, device)
        routers = find_routers(self.model)
        stacks = {r.path[: m.start(1)] for r in routers if (m := LAYER_INDEX.search(r.path))}
        if not stacks or any(LAYER_INDEX.search(r.path) is None for r in routers):
            raise UnsupportedArchitectureError(
                f"{type(self.model).__name__} does not keep its routers in numbered layers",
                hint="leave --stream and --memory out",
            )
        named = dict(self.model.named_modules())
        self.paths = [p for p in named if p.rpartition(".")[0] + "." in stacks]
        self.layers = [named[p] for p in self.paths]
        self.routed = {r.path[: m.end(1)] for r in routers if (m := LAYER_INDEX.search(r.path))}
        tensors = named_tensors(self.model)
        prefixes = tuple(f"{p}." for p in self.paths)
        inside = tuple(f"{r.path}." for r in routers)
        # Towers for images or sound are not loaded: the probe is text, so they never run.
        self.resident = {
            n
            for n in tensors
            if n.startswith(inside)
            or n.rpartition(".")[2] in MODULE_NAMES
            or not (n.startswith(prefixes) or OTHER_TOWER.search(n))
        }
        self._own = [
            [n for n in tensors if n.startswith(f"{p}.") and n not in self.resident]
            for p in self.paths
        ]
        self.chunks: list[list[ExpertChunks]] = [[] for _ in self.layers]
        self._recorded: Sequence[Any] = ()
        self._wanted = 0
        self._ran: set[int] = set()  # layers that this forward of the model has called
        self._forwards = [layer.forward for layer in self.layers]
        for place, layer in enumerate(self.layers):
            layer.forward = self._make_forward(place)

    @property
    def width(self) -> int:
        """D, the width of the layers' outputs."""
        return int(self.model.get_input_embeddings().weight.shape[-1])

    @property
    def boundary(self) -> int:
        """Bytes of one position in the outputs of all layers."""
        return self.width * len(self.layers) * self.dtype.itemsize

    @property
    def first_routed(self) -> int:
        """Index of the first layer with a router."""
        return min(i for i, p in enumerate(self.paths) if p in self.routed)

    @property
    def last_routed(self) -> int:
        """Index of the last layer with a router."""
        return max(i for i, p in enumerate(self.paths) if p in self.routed)

    def attach(self, checkpoint: Checkpoint) -> None:
        """Read weights from this checkpoint's files from now on.

        Raises:
            MoegeoError: as `LayerFiles`.
        """
        self.files = LayerFiles(self.model, checkpoint, self.device, self.dtype, ahead=self.ahead)
        self.fused = [chunked_parameters(own, self.files) for own in self._own]

    def open(self, chunk_bytes: int | None) -> None:
        """Load the resident parameters.

        Args:
            chunk_bytes: bytes of experts that are in memory together, one expert at least; None
                for all experts of a layer.

        Raises:
            IncompleteCheckpointError: a tensor that the model needs is not in the files.
            ShapeError: a tensor's shape contradicts the config.
        """
        self.files.release(self.resident)
        self.files.load(self.resident)
        self.model.tie_weights()
        self.files.refuse_missing(self.resident)
        self.chunks = [[] for _ in self.layers]
        if chunk_bytes is not None:
            compute_experts_by(self.model, "eager")
            self.chunks = [
                [ExpertChunks(self.files, module, names, chunk_bytes) for module, names in found]
                for found in self.fused
            ]

    def sizes(self, sums: int, longest: int = 0) -> PartSizes:
        """Sizes of the model's parts, for the memory plan.

        Args:
            sums: bytes of what is measured.
            longest: tokens of the longest sequence.
        """
        tensors = {n: t for n, t in named_tensors(self.model).items() if n in self.files.sources}
        size = {n: t.numel() * t.element_size() for n, t in tensors.items()}
        fused = [{n for _, names in found for n in names} for found in self.fused]
        own = [[n for n in names if n in size] for names in self._own]
        experts = [tensors[n] for names in fused for n in names]
        inner = [min(t.shape[1:]) for t in experts]
        routers = find_routers(self.model)
        return PartSizes(
            resident=sum(size[n] for n in self.resident if n in size),
            shared=max(
                sum(size[n] for n in names if n not in taken)
                for names, taken in zip(own, fused, strict=True)
            ),
            layer=max(sum(size[n] for n in names) for names in own),
            expert=max(
                (sum(size[n] // tensors[n].shape[0] for n in taken) for taken in fused), default=0
            ),
            boundary=self.boundary,
            sums=sums,
            width=self.width,
            inner=max(inner, default=self.width),
            top_k=max((r.top_k or 1 for r in routers), default=1),
            vocabulary=int(self.model.get_input_embeddings().weight.shape[0]),
            itemsize=self.dtype.itemsize,
            attention=score_bytes(self.model.config) * longest,
        )

    @contextlib.contextmanager
    def layer(self, place: int) -> Iterator[None]:
        """A context with one layer's parameters in memory.

        Args:
            place: index of the layer; `len(layers)` for the model's end, which is resident.

        Raises:
            IncompleteCheckpointError: as `open`.
            ShapeError: as `open`.
        """
        if place == len(self.layers):
            yield
            return
        chunked = {n for chunks in self.chunks[place] for n in chunks.names}
        own = [n for n in self._own[place] if n not in chunked]
        try:
            self.files.load(own)
            self.files.refuse_missing(own)
            with contextlib.ExitStack() as stack:
                for chunks in self.chunks[place]:
                    stack.enter_context(chunks.reading_on_index())
                yield
        finally:
            self.files.release(own)

    def prefetch(self, place: int) -> None:
        """Start to read a layer's parameters from the files, before `layer` needs them."""
        if 0 <= place < len(self.layers):
            chunked = {n for chunks in self.chunks[place] for n in chunks.names}
            self.files.prefetch([n for n in self._own[place] if n not in chunked])

    def run(self, place: int, forward: Callable[[], Any], recorded: Sequence[Any]) -> Any:
        """The output of one layer, or of the model.

        Args:
            place: index of the layer; `len(layers)` for the model.
            forward: calls the model's whole forward.
            recorded: outputs of the layers before it.

        Raises:
            UnsupportedArchitectureError: the model skips or repeats a layer, or runs its layers in
                another order.
        """
        self._wanted, self._recorded = place, recorded
        self._ran.clear()
        try:
            output = forward()
        except _Reached as reached:
            return reached.output
        if place < len(self.layers):
            raise UnsupportedArchitectureError(
                f"{type(self.model).__name__} did not run its layer {self.paths[place]}",
                hint="leave --stream and --memory out",
            )
        return output

    def _make_forward(self, place: int) -> Callable[..., Any]:
        """The forward that replaces a layer's: recorded output, computed output, or an error."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if place in self._ran:
                raise UnsupportedArchitectureError(
                    f"{type(self.model).__name__} runs its layer {self.paths[place]} more than "
                    "once for the same tokens",
                    hint="moegeo measures routers that see every token once",
                )
            self._ran.add(place)
            if place < self._wanted:
                return self._recorded[place]
            if place > self._wanted:
                raise UnsupportedArchitectureError(
                    f"{type(self.model).__name__} runs its layers in another order than it "
                    "keeps them in",
                    hint="leave --stream and --memory out",
                )
            raise _Reached(self._forwards[place](*args, **kwargs))

        return forward
