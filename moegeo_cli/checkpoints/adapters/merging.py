"""Match an adapter's changes with the stored tensors of its base model, and apply them.

The match is made when the first value is read. A stored tensor with the name of a module's weight
is matched by name. For others a `Tracer` tells which stored tensors fill each parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.changes import Change, Matrices, Span, check_shapes
from moegeo_cli.checkpoints.adapters.config import AdapterConfig
from moegeo_cli.checkpoints.adapters.layout import (
    ParameterSource,
    Piece,
    Shape,
    Tracer,
    cut_parameter,
)
from moegeo_cli.checkpoints.adapters.parts import Parts, Target
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import MoegeoError, ShapeError, UnsupportedLayoutError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# The adapter's tensor, the piece of the parameter that it replaces, the parameter's shape.
Replacement = tuple[str, Piece, Shape]


class Merging:
    """The changes that an adapter makes to its base model's tensors.

    Args:
        folder: the checkpoint's folder, for errors.
        config: the adapter's adapter_config.json.
        parts: the adapter's tensors, sorted.
        matrices: the values of these tensors.
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
        self._sources: Mapping[str, ParameterSource] | None = None
        self._changes: list[Change] | None = None
        self._by_name: dict[str, list[tuple[Change, Piece]]] = {}
        self._replaced: dict[str, Replacement] = {}

    def resolve(self, trace: Tracer | None) -> None:
        """Match every change with stored tensors.

        Args:
            trace: tells which stored tensors fill each parameter; None to match by name only. It
                is not kept, since it may hold a model.

        Raises: the same errors as `changes`.
        """
        self._trace = trace
        try:
            _ = self.changes
        finally:
            self._trace = None

    @property
    def words(self) -> str:
        """The kind and rank of the adapter and the number of weights it changes, in words."""
        kind = "DoRA" if any("magnitude" in t.parts for t in self.parts.targets) else "LoRA"
        ranks = sorted({c.rank for c in self.changes} or {self.config.rank})
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        words = f"a {kind} adapter of rank {rank} merged into {len(self.changes)} weights"
        if self.parts.replaced:
            words += f", {len(self.parts.replaced)} more replaced"
        return words

    @property
    def changes(self) -> Sequence[Change]:
        """All low-rank changes, each with the stored tensors that it changes.

        Raises:
            UnsupportedLayoutError: a part of the adapter fits no tensor of the base model.
            ShapeError: a part has another shape than the tensor that it changes.
        """
        if self._changes is None:
            changes = [self._change(target) for target in self.parts.targets]
            for parameter, name in self.parts.replaced.items():
                self._replace(parameter, name)
            for change in changes:
                for piece in change.pieces:
                    self._by_name.setdefault(piece.name, []).append((change, piece))
            touched = [*self._by_name, *self._replaced]
            self._refuse_quantised([n for n in touched if self.base.dtype(n) not in FLOATS])
            self._changes = changes
        return self._changes

    @property
    def touched(self) -> frozenset[str]:
        """Names of the base model's tensors that the adapter changes."""
        assert self.changes is not None
        return frozenset((*self._by_name, *self._replaced))

    def touches(self, name: str) -> bool:
        """Whether the adapter changes a tensor of the base model."""
        assert self.changes is not None
        return name in self._by_name or name in self._replaced

    def apply(self, name: str, values: Any, rows: Span | None) -> Any:
        """Merge the adapter into a tensor of the base model, or into some of its rows.

        Args:
            name: the tensor's name.
            values: its values without the adapter.
            rows: (start, stop) of these rows along the first dimension; None for all.

        Returns:
            The merged values, in the dtype of `values`.
        """
        if name in self._replaced:
            values = self._replacement(*self._replaced[name], rows).to(values.dtype)
        for change, piece in self._by_name.get(name, ()):
            values = change.add(piece, values, rows)
        return values.contiguous()

    def _change(self, target: Target) -> Change:
        parameter, source, as_parameter = self._find(target)
        key = parameter if as_parameter else target.module
        change = Change(
            parameter=parameter,
            target=target,
            shape=source.shape,
            scale=self.config.scale_of(key),
            rank=self.config.rank_of(key),
            transposed=False,
            rounded=as_parameter,
            matrices=self.matrices,
        )
        change.transposed = self._is_transposed(change, source)
        check_shapes(change, self.folder)
        change.pieces = self._cut(parameter, source)
        return change

    def _find(self, target: Target) -> tuple[str, ParameterSource, bool]:
        """The parameter that a pair of matrices changes.

        Returns:
            Its name, how it is made, and whether `target_parameters` names it.
        """
        own = f"{target.module}.weight"
        by_name = self.config.targets(own)
        if own in self.base and len(self.base.shape(own)) == 2 and target.depth == 0:
            return own, ParameterSource(self.base.shape(own), ((own,),)), by_name
        sources = self._all()
        beside = [n for n in sources if n.rpartition(".")[0] == target.module]
        wanted = [name for name in beside if self.config.targets(name)]
        if wanted and target.depth < len(wanted):
            found = wanted[len(wanted) - 1 - target.depth]
            return found, sources[found], True
        if not wanted and own in sources and target.depth == 0:
            return own, sources[own], False
        raise self._no_match(target.parts["A"])

    def _is_transposed(self, change: Change, source: ParameterSource) -> bool:
        """Whether a weight is stored (inputs, outputs): by shapes, for a square one by config."""
        if change.target.embedding or len(change.shape) < 2:
            return False
        inputs = self.matrices.shape(change.target.parts["A"])[-1:]
        fits, transposed = inputs == change.shape[-1:], inputs == change.shape[-2:-1]
        if fits != transposed or len(change.shape) == 2:
            return transposed and (not fits or self.config.transposed)
        if self.config.inputs_first:
            return transposed
        return bool(source.transposed)

    def _replace(self, parameter: str, name: str) -> None:
        shape = self.matrices.shape(name)
        if parameter in self.base:
            source: ParameterSource | None = ParameterSource(
                self.base.shape(parameter), ((parameter,),)
            )
        else:
            source = self._all().get(parameter)
        if source is None:
            raise self._no_match(name)
        if source.shape != shape:
            raise ShapeError(
                f"{self.folder.name}: the adapter replaces {parameter} by one of another shape",
                found=f"{list(shape)} for {list(source.shape)}",
                hint="where the vocabulary was resized, merge the adapter with peft and save that",
            )
        for piece in self._cut(parameter, source):
            self._replaced[piece.name] = (name, piece, shape)

    def _cut(self, parameter: str, source: ParameterSource) -> list[Piece]:
        shapes = {n: self.base.shape(n) for group in source.names for n in group}
        pieces = cut_parameter(source, shapes)
        if pieces is None:
            saved = [n for group in source.names for n in group]
            raise UnsupportedLayoutError(
                f"{self.folder.name}: the adapter changes {parameter}, which the files hold in a "
                "form that moegeo does not merge into",
                found=f"{', '.join(saved[:2])} ({', '.join(source.operations) or 'renamed'})",
                hint="merge it where it was trained (peft: merge_and_unload) and save the result",
            )
        return pieces

    def _replacement(self, name: str, piece: Piece, shape: Shape, rows: Span | None) -> Any:
        """The part of the adapter's tensor that replaces a stored tensor, or some of its rows."""
        found = self.matrices.index.tensor(self.matrices.names[name])
        if len(shape) == 3 and piece.expert is not None:
            found = found[piece.expert]
        if len(shape) > 1:
            found = found[..., slice(*piece.rows), slice(*piece.columns)]
        if piece.transposed:
            found = found.transpose(-1, -2)
        return found[slice(*rows)] if rows else found

    def _all(self) -> Mapping[str, ParameterSource]:
        if self._sources is None and self._trace is not None:
            self._sources = self._trace(self.base)
        return self._sources or {}

    def _no_match(self, name: str) -> MoegeoError:
        return UnsupportedLayoutError(
            f"{self.folder.name}: a part of the adapter fits no weight of its base model",
            found=f"{self.matrices.names[name]} of shape {list(self.matrices.shape(name))}",
            hint="give the base model that the adapter was trained on: --config PATH",
            context={"tensor": self.matrices.names[name]},
        )

    def _refuse_quantised(self, names: Sequence[str]) -> None:
        if names:
            raise UnsupportedLayoutError(
                f"{self.folder.name}: the adapter changes a weight that is quantised in a form "
                "that moegeo does not read",
                found=names[0],
                hint="give the unquantised base model",
            )
