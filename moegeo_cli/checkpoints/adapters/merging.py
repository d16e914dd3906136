"""An adapter brought together with the tensors of its base model.

Which tensor takes which change is found when the first value is asked for: by name where the files
keep a module's weight under its own name, else by how the module tree is filled (`Tracer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.changes import Change, Matrices, Span, check_shapes
from moegeo_cli.checkpoints.adapters.config import AdapterConfig
from moegeo_cli.checkpoints.adapters.layout import Filling, Piece, Shape, Tracer, cut
from moegeo_cli.checkpoints.adapters.parts import Parts, Target
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import MoegeoError, ShapeError, UnsupportedLayoutError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
Put = tuple[str, Piece, Shape]  # tensor of the adapter, where it goes, the parameter's shape


class Merging:
    """What an adapter does to each of its base model's tensors.

    Args:
        folder: the checkpoint's, for errors.
        config: what its adapter_config.json says.
        parts: its tensors, sorted.
        matrices: their values.
        base: the base model's tensors.
    """

    def __init__(
        self,
        folder: Path,
        config: AdapterConfig,
        parts: Parts,
        matrices: Matrices,
        base: WeightIndex,
    ) -> None:
        self.folder, self.config, self.parts, self.matrices = folder, config, parts, matrices
        self.base = base
        self._trace: Tracer | None = None
        self._fillings: Mapping[str, Filling] | None = None
        self._changes: list[Change] | None = None
        self._by_name: dict[str, list[tuple[Change, Piece]]] = {}
        self._put: dict[str, Put] = {}

    def resolve(self, trace: Tracer | None) -> None:
        """Find every change.

        Args:
            trace: how the module tree is filled; None where nobody can say. It is not held on to:
                it may hold a model.

        Raises: what `changes` raises.
        """
        self._trace = trace
        try:
            _ = self.changes
        finally:
            self._trace = None

    @property
    def words(self) -> str:
        """What it is, in words."""
        kind = "DoRA" if any("magnitude" in t.parts for t in self.parts.targets) else "LoRA"
        ranks = sorted({c.rank for c in self.changes} or {self.config.rank})
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        words = f"a {kind} adapter of rank {rank} merged into {len(self.changes)} weights"
        if self.parts.replaced:
            words += f", {len(self.parts.replaced)} more replaced"
        return words

    @property
    def changes(self) -> Sequence[Change]:
        """Every low-rank change, with where it goes.

        Raises:
            UnsupportedLayoutError, ShapeError: a part that fits no tensor of the base model.
        """
        if self._changes is None:
            changes = [self._change(target) for target in self.parts.targets]
            for parameter, name in self.parts.replaced.items():
                self._replace(parameter, name)
            for change in changes:
                for piece in change.pieces:
                    self._by_name.setdefault(piece.name, []).append((change, piece))
            touched = [*self._by_name, *self._put]
            self._refuse_bytes([n for n in touched if self.base.dtype(n) not in FLOATS])
            self._changes = changes
        return self._changes

    @property
    def touched(self) -> frozenset[str]:
        """Names of the base model's tensors that are others with the adapter."""
        assert self.changes is not None
        return frozenset((*self._by_name, *self._put))

    def touches(self, name: str) -> bool:
        """Whether a tensor of the base model is another with the adapter."""
        assert self.changes is not None
        return name in self._by_name or name in self._put

    def apply(self, name: str, values: Any, rows: Span | None) -> Any:
        """A tensor of the base model, or some of its rows, as it is with the adapter.

        Args:
            name: the tensor's.
            values: its values without the adapter.
            rows: (start, stop) along the first dimension; None for all.
        """
        if name in self._put:
            values = self._take(*self._put[name], rows).to(values.dtype)
        for change, piece in self._by_name.get(name, ()):
            values = change.add(piece, values, rows)
        return values.contiguous()

    def _change(self, target: Target) -> Change:
        parameter, filling, as_parameter = self._find(target)
        key = parameter if as_parameter else target.module
        change = Change(
            parameter=parameter,
            target=target,
            shape=filling.shape,
            scale=self.config.scale_of(key),
            rank=self.config.rank_of(key),
            turned=False,
            rounded=as_parameter,
            matrices=self.matrices,
        )
        change.turned = self._is_turned(change, filling)
        check_shapes(change, self.folder)
        change.pieces = self._cut(parameter, filling)
        return change

    def _find(self, target: Target) -> tuple[str, Filling, bool]:
        """The parameter that a pair of matrices changes, and whether it is a target by itself."""
        own = f"{target.module}.weight"
        by_name = self.config.targets(own)
        if own in self.base and len(self.base.shape(own)) == 2 and target.depth == 0:
            return own, Filling(self.base.shape(own), ((own,),)), by_name
        fillings = self._all()
        beside = [n for n in fillings if n.rpartition(".")[0] == target.module]
        wanted = [name for name in beside if self.config.targets(name)]
        if wanted and target.depth < len(wanted):
            found = wanted[len(wanted) - 1 - target.depth]
            return found, fillings[found], True
        if not wanted and own in fillings and target.depth == 0:
            return own, fillings[own], False
        raise self._stranger(target.parts["A"])

    def _is_turned(self, change: Change, filling: Filling) -> bool:
        """Whether a weight is stored (inputs, outputs): by shape; of a square as said."""
        if change.target.embedding or len(change.shape) < 2:
            return False
        wide = self.matrices.shape(change.target.parts["A"])[-1:]
        fits, turned = wide == change.shape[-1:], wide == change.shape[-2:-1]
        if fits != turned or len(change.shape) == 2:
            return turned and (not fits or self.config.turned)
        if self.config.inputs_first:
            return turned
        return bool(filling.turned)

    def _replace(self, parameter: str, name: str) -> None:
        shape = self.matrices.shape(name)
        if parameter in self.base:
            filling: Filling | None = Filling(self.base.shape(parameter), ((parameter,),))
        else:
            filling = self._all().get(parameter)
        if filling is None:
            raise self._stranger(name)
        if filling.shape != shape:
            raise ShapeError(
                f"{self.folder.name}: the adapter replaces {parameter} by a tensor of other shape",
                found=f"{list(shape)} for {list(filling.shape)}",
                hint="where the vocabulary was resized, merge the adapter with peft and save that",
            )
        for piece in self._cut(parameter, filling):
            self._put[piece.name] = (name, piece, shape)

    def _cut(self, parameter: str, filling: Filling) -> list[Piece]:
        shapes = {n: self.base.shape(n) for group in filling.names for n in group}
        pieces = cut(filling, shapes)
        if pieces is None:
            saved = [n for group in filling.names for n in group]
            raise UnsupportedLayoutError(
                f"{self.folder.name}: the adapter changes {parameter}, which the files hold in a "
                "form that moegeo does not merge into",
                found=f"{', '.join(saved[:2])} ({', '.join(filling.operations) or 'renamed'})",
                hint="merge it where it was trained (peft: merge_and_unload) and save the result",
            )
        return pieces

    def _take(self, name: str, piece: Piece, shape: Shape, rows: Span | None) -> Any:
        """What takes a tensor's place."""
        found = self.matrices.index.tensor(self.matrices.names[name])
        if len(shape) == 3 and piece.expert is not None:
            found = found[piece.expert]
        if len(shape) > 1:
            found = found[..., slice(*piece.rows), slice(*piece.columns)]
        if piece.turned:
            found = found.transpose(-1, -2)
        return found[slice(*rows)] if rows else found

    def _all(self) -> Mapping[str, Filling]:
        if self._fillings is None and self._trace is not None:
            self._fillings = self._trace(self.base)
        return self._fillings or {}

    def _stranger(self, name: str) -> MoegeoError:
        return UnsupportedLayoutError(
            f"{self.folder.name}: a part of the adapter fits no weight of its base model",
            found=f"{self.matrices.names[name]} of shape {list(self.matrices.shape(name))}",
            hint="give the base model that the adapter was trained on: --config PATH",
            context={"tensor": self.matrices.names[name]},
        )

    def _refuse_bytes(self, names: Sequence[str]) -> None:
        if names:
            raise UnsupportedLayoutError(
                f"{self.folder.name}: the adapter changes a weight that is quantised in a form "
                "that moegeo does not read",
                found=names[0],
                hint="give the unquantised base model",
            )
