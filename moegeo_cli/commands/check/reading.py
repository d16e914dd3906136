"""Reads the MoE layers of a checkpoint from its files: whole routers, and experts piece by piece.

Values come from `EffectiveWeights`: they are the values that the model computes with, quantised or
not. Digests are of the stored bytes. At most one matrix of one expert is in memory at a time. If a
form of quantisation cannot be read in slices, it is one tensor with all experts of a layer.

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

    Attributes:
        expert: the expert's number.
        role: what the weight is, the same for all experts.
        name: name of the stored tensor.
        digest: digest of the stored bytes.
        values: float32, shape (R, C) for a matrix and (R,) for a bias. The matrix is not
            transposed: its rows are those of the stored tensor. None if the bytes cannot be turned
            into numbers.
        reason: why `values` is None.
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
        layer: index of the decoder layer; None if the tensor names have none.
        router: names of the router's tensors.
        weight_ED: the router's weight, float32, shape (E, D); None if it cannot be read.
        bias_E: the bias of the logits, float32; None if there is none or it cannot be read.
        selection_bias_E: the bias that is added for the selection only, float32; None if there is
            none or it cannot be read.
        bias_dtype: stored dtype of the selection bias (F32, BF16, ...); None if there is no bias.
        experts: the tensors of each expert; empty if none were found.
        reasons: name of what could not be read -> why.
    """

    def __init__(
        self,
        index: EffectiveWeights,
        router: RouterTensors,
        experts: ExpertTensors,
        architecture: Architecture | None,
    ) -> None:
        """Read the router. Experts are read on request.

        Args:
            index: the checkpoint's tensors.
            router: names of the router's tensors.
            experts: the tensors of its experts.
            architecture: gives the number of experts, to recognise a transposed router weight.
        """
        self.index, self.router, self.experts = index, router, experts.experts
        self.layer = router.layer
        self.reasons: dict[str, str] = {}
        self.weight_ED = _with_expert_rows(
            self._values("router", router.weight), router, architecture
        )
        self.bias_E = self._vector("bias", router.bias)
        self.selection_bias_E = self._vector("selection_bias", router.selection_bias)
        named = router.selection_bias
        self.bias_dtype = None if named is None else index.dtype(named)

    @property
    def router_digest(self) -> str:
        """Digest of the router's weight and logit bias."""
        names = [n for n in (self.router.weight, self.router.bias) if n is not None]
        return digest_names(self.index, names)

    @property
    def bias_digest(self) -> str | None:
        """Digest of the selection bias; None if there is no bias."""
        named = self.router.selection_bias
        return None if named is None else digest_names(self.index, [named])

    def read_experts(self) -> Iterator[Piece]:
        """Every expert's weights, one piece at a time, ordered by expert and role.

        Raises:
            MoegeoError: a file changed while it was read, or is damaged.
        """
        wholes: dict[str, Any] = {}
        for expert in sorted(self.experts):
            yield from self.read_expert(expert, wholes)

    def read_expert(self, expert: int, wholes: dict[str, Any] | None = None) -> Iterator[Piece]:
        """The weights of one expert, ordered by role.

        Args:
            expert: its number.
            wholes: a cache for tensors of all experts that cannot be read in slices.

        Raises:
            MoegeoError: a file changed while it was read, or is damaged.
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
            reason = f"stored as {dtype}, and no file says how to decode these bytes"
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
    """Read the MoE layers one by one.

    Args:
        index: the checkpoint's tensors.
        routers: its routers, from `find_router_tensors`.
        architecture: the architecture in config.json; None if not known.
    """
    experts = find_expert_tensors(index, routers)
    for router in routers:
        yield MoELayer(index, router, experts[router.module], architecture)


def first_rows(index: EffectiveWeights, name: str, count: int) -> np.ndarray[Any, Any]:
    """The first `count` rows of a float tensor, or all rows if there are fewer; float32."""
    shape = index.shape(name)
    rows = (0, min(count, shape[0]))
    cheap = index.slices_cheaply(name)
    if cheap and index.is_stored(name) and index.layout.startswith("safetensors"):
        raw = index.stored_bytes(name, rows)
        return as_numbers(raw, index.dtype(name), (rows[1], *shape[1:])).astype(np.float32)
    part = index.tensor(name, rows) if cheap else index.tensor(name)[: rows[1]]
    return np.asarray(part.float().numpy())


def digest_names(index: EffectiveWeights, names: Sequence[str]) -> str:
    """One digest of the stored bytes of several tensors: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in names:
        for raw in _chunks(index, name):
            digest.update(raw)
    return digest.hexdigest()[: 2 * DIGEST_BYTES]


def _chunks(index: EffectiveWeights, name: str) -> Iterator[bytes]:
    """The stored bytes of a tensor; a large tensor comes a few rows at a time."""
    info = index.info(name)
    shape = index.shape(name)
    size = sum(part.end - part.start for _, part in index.parts(name)) or info.elements * 4
    if size <= CHUNK_BYTES or not shape or shape[0] < 2 or not index.slices_cheaply(name):
        yield index.stored_bytes(name)
        return
    step = max(1, shape[0] * CHUNK_BYTES // size)
    for start in range(0, shape[0], step):
        yield index.stored_bytes(name, (start, min(start + step, shape[0])))


def _with_expert_rows(
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
