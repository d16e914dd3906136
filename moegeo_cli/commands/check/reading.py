"""A checkpoint's mixture-of-experts layers from its files: routers whole, experts piece by piece.

Values come through `EffectiveWeights`, so they are those that the model computes with, quantised or
not; digests are of the stored bytes. No more than one matrix of one expert is held at a time,
except where a form cannot be read in slices: then one tensor of all experts of a layer.

Legend: E experts, D width of the router's input, R rows and C columns of an expert's matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.accounting import FLOATS
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.effective import EffectiveWeights
from moegeo_cli.checkpoints.experts import ExpertTensor, ExpertTensors, find_expert_tensors
from moegeo_cli.checkpoints.headers import as_numbers
from moegeo_cli.checkpoints.routers import RouterTensors
from moegeo_cli.errors import MoegeoError

DIGEST_BYTES = 16
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """One weight of one expert, as read.

    `values` are float32, (R, C) for a matrix and (R,) for a bias, rows as stored: a family that
    stores a matrix the other way round gives it so. They are None where the stored bytes cannot be
    turned into numbers; then `reason` says why. `digest` is of the stored bytes in any case.
    """

    expert: int
    role: str
    name: str
    digest: bytes
    values: np.ndarray[Any, Any] | None
    reason: str | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix with values."""
        return self.values is not None and self.values.ndim == 2


class MoELayer:
    """One router and the experts beside it.

    Attributes:
        layer: index of the decoder layer; None where the names tell none.
        router: the router's tensors by name.
        weight_ED: the router's weight, float32, shape (E, D); None where it cannot be read.
        bias_E: the bias of the logits, float32; None where there is none or it cannot be read.
        selection_bias_E: the bias of the selection alone, likewise.
        bias_dtype: stored dtype of the selection bias (F32, BF16, ...); None without one.
        experts: the experts' tensors by expert; empty where none were found.
        reasons: what could not be read -> why.
    """

    def __init__(
        self,
        index: EffectiveWeights,
        router: RouterTensors,
        experts: ExpertTensors,
        architecture: Architecture | None,
    ) -> None:
        """Read the router; experts are read on request.

        Args:
            index: the checkpoint's tensors.
            router: the router's.
            experts: its experts'.
            architecture: tells which way round the router's weight is stored.
        """
        self.index, self.router, self.experts = index, router, experts.experts
        self.layer = router.layer
        self.reasons: dict[str, str] = {}
        self.weight_ED = _upright(self._values("router", router.weight), router, architecture)
        self.bias_E = self._vector("bias", router.bias)
        self.selection_bias_E = self._vector("selection_bias", router.selection_bias)
        named = router.selection_bias
        self.bias_dtype = None if named is None else index.dtype(named)

    @property
    def router_digest(self) -> str:
        """Digest of the router's weight and of the bias of its logits."""
        names = [n for n in (self.router.weight, self.router.bias) if n is not None]
        return digest_names(self.index, names)

    @property
    def bias_digest(self) -> str | None:
        """Digest of the selection bias; None without one."""
        named = self.router.selection_bias
        return None if named is None else digest_names(self.index, [named])

    def read_experts(self) -> Iterator[Piece]:
        """Every expert's weights, one piece at a time, by expert and role.

        Raises:
            MoegeoError: a file that changed or broke while it was read.
        """
        wholes: dict[str, Any] = {}
        for expert in sorted(self.experts):
            yield from self.read_expert(expert, wholes)

    def read_expert(self, expert: int, wholes: dict[str, Any] | None = None) -> Iterator[Piece]:
        """One expert's weights by role.

        Args:
            expert: its number.
            wholes: keeps tensors of all experts that cannot be read in slices, between calls.

        Raises:
            MoegeoError: a file that changed or broke while it was read.
        """
        kept = {} if wholes is None else wholes
        for tensor in self.experts[expert]:
            yield self._read(tensor, kept)

    def _read(self, tensor: ExpertTensor, wholes: dict[str, Any]) -> Piece:
        index, name, rows = self.index, tensor.name, tensor.rows
        dtype = index.dtype(name)
        readable = dtype in FLOATS
        if rows is not None and not index.slices_cheaply(name):
            if name not in wholes:
                wholes[name] = index.tensor(name)
            part = wholes[name][slice(*rows)]
            raw = _torch_bytes(part) if index.is_stored(name) else index.stored_bytes(name, rows)
            values = part.float().numpy() if readable else None
        else:
            raw = index.stored_bytes(name, rows)
            if not readable:
                values = None
            elif index.is_stored(name):
                values = as_numbers(raw, dtype, tensor.shape)
            else:
                values = index.tensor(name, rows).float().numpy()
        digest = hashlib.sha256(raw).digest()[:DIGEST_BYTES]
        if values is None:
            reason = f"stored as {dtype}, and no file says which values these bytes stand for"
            return Piece(tensor.expert, tensor.role, name, digest, None, reason)
        values = np.asarray(values, dtype=np.float32).reshape(tensor.shape)
        return Piece(tensor.expert, tensor.role, name, digest, values)

    def _vector(self, what: str, name: str | None) -> np.ndarray[Any, Any] | None:
        found = None if name is None else self._values(what, name)
        return None if found is None else found.reshape(-1)

    def _values(self, what: str, name: str) -> np.ndarray[Any, Any] | None:
        dtype = self.index.dtype(name)
        if dtype not in FLOATS:
            self.reasons[what] = f"{name} is stored as {dtype}"
            return None
        try:
            return np.asarray(self.index.read(name), dtype=np.float32)
        except MoegeoError as error:
            self.reasons[what] = error.message
            return None


def read_layers(
    index: EffectiveWeights,
    routers: Sequence[RouterTensors],
    architecture: Architecture | None = None,
) -> Iterator[MoELayer]:
    """The layers with a router, one after the other.

    Args:
        index: the checkpoint's tensors.
        routers: its routers, as `find_router_tensors` gives them.
        architecture: what config.json says; None where it says nothing.
    """
    experts = find_expert_tensors(index, routers)
    for router in routers:
        yield MoELayer(index, router, experts[router.module], architecture)


def first_rows(index: EffectiveWeights, name: str, count: int) -> np.ndarray[Any, Any]:
    """The first rows of a tensor of floats, float32; all of them where there are fewer."""
    shape = index.shape(name)
    rows = (0, min(count, shape[0]))
    cheap = index.slices_cheaply(name)
    if cheap and index.is_stored(name) and index.layout.startswith("safetensors"):
        raw = index.stored_bytes(name, rows)
        return as_numbers(raw, index.dtype(name), (rows[1], *shape[1:])).astype(np.float32)
    part = index.tensor(name, rows) if cheap else index.tensor(name)[: rows[1]]
    return np.asarray(part.float().numpy())


def digest_names(index: EffectiveWeights, names: Sequence[str]) -> str:
    """Digest of the stored bytes of some tensors, read in chunks; 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in names:
        for raw in _chunks(index, name):
            digest.update(raw)
    return digest.hexdigest()[: 2 * DIGEST_BYTES]


def _chunks(index: EffectiveWeights, name: str) -> Iterator[bytes]:
    """The stored bytes of a tensor, a few rows at a time where it is large."""
    info = index.info(name)
    shape = index.shape(name)
    size = sum(held.end - held.start for _, held in index.parts(name)) or info.elements * 4
    if size <= CHUNK_BYTES or not shape or shape[0] < 2 or not index.slices_cheaply(name):
        yield index.stored_bytes(name)
        return
    step = max(1, shape[0] * CHUNK_BYTES // size)
    for start in range(0, shape[0], step):
        yield index.stored_bytes(name, (start, min(start + step, shape[0])))


def _upright(
    weight: np.ndarray[Any, Any] | None, router: RouterTensors, architecture: Architecture | None
) -> np.ndarray[Any, Any] | None:
    """A router's weight with one row per expert. Some families store it transposed."""
    if weight is None or weight.ndim != 2:
        return None
    rows = architecture.rows_in(router.layer) if architecture is not None else None
    if rows is not None and weight.shape[0] != rows and weight.shape[1] == rows:
        return np.ascontiguousarray(weight.T)
    return weight


def _torch_bytes(tensor: Any) -> bytes:
    from moegeo_cli.checkpoints.pickles import tensor_bytes

    return tensor_bytes(tensor)
