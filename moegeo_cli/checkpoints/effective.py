"""`EffectiveWeights`: the tensors that a model computes with, made from the stored tensors.

Prefixes of wrappers are removed from names, quantised tensors are dequantised, and adapters are
merged. All ways to load a model (`models/`) and all lenses over weights read through this class,
so that equal files give equal numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.accounting import known_reason
from moegeo_cli.checkpoints.adapters.config import CONFIG
from moegeo_cli.checkpoints.adapters.files import ADAPTER_FILES
from moegeo_cli.checkpoints.adapters.finding import find_adapter
from moegeo_cli.checkpoints.adapters.layout import Tracer
from moegeo_cli.checkpoints.adapters.merging import Merging
from moegeo_cli.checkpoints.adapters.moves import measure_moves
from moegeo_cli.checkpoints.headers import Header, TensorInfo
from moegeo_cli.checkpoints.pickles import tensor_bytes
from moegeo_cli.checkpoints.quantised.files import Files
from moegeo_cli.checkpoints.quantised.plan import plan_quantised
from moegeo_cli.checkpoints.quantised.recipe import Recipe
from moegeo_cli.checkpoints.quantised.settings import SIDE_FILES
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.checkpoints.wrappers import unwrap_names
from moegeo_cli.errors import IncompleteCheckpointError, MoegeoError


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """How the stored tensors were turned into the model's.

    Attributes:
        scheme: quantisation schemes, by name; () where nothing is quantised.
        dequantised: number of tensors that are made from quantised ones.
        adapter: the merged adapter in words; None without an adapter, or before `resolve`.
        unwrapped: wrapper prefixes that were removed from names.
    """

    scheme: tuple[str, ...] = ()
    dequantised: int = 0
    adapter: str | None = None
    unwrapped: tuple[str, ...] = ()


class EffectiveWeights(WeightIndex):
    """A checkpoint's tensors as the model has them; see `WeightIndex`.

    Attributes:
        stored: the stored tensors.
        record: how they were turned into the model's.
        bytes_read: bytes that `stored_bytes` has returned so far.
    """

    bytes_read = 0

    def __init__(
        self,
        stored: WeightIndex,
        settings: Mapping[str, Any],
        *,
        inner: bool,
        folder: Path,
        adapter: WeightIndex | None,
        merge: bool = True,
    ) -> None:
        """Plan how each tensor is made; values are read on request.

        Args:
            stored: the stored tensors.
            settings: the quantisation settings of config.json and of files beside it.
            inner: see `unwrap_names`.
            folder: the checkpoint's folder, where an adapter may lie.
            adapter: the tensors of the adapter in that folder; None without one.
            merge: false if the model itself has the adapter's matrices as parameters.
        """
        self.stored = stored
        self.folder, self.layout, self.files = stored.folder, stored.layout, stored.files
        self.place = folder
        self.obstacle, self.left_out = stored.obstacle, stored.left_out
        unwrapped = unwrap_names(stored.names(), inner=inner)
        self._names = unwrapped.names
        self.merging: Merging | None = None
        # An adapter that cannot be read. Values are then refused: the base model is another model.
        self._refused: MoegeoError | None = None
        try:
            if merge:
                self.merging, self._names = find_adapter(
                    stored, self._names, folder, adapter, inner=inner, base=self
                )
        except MoegeoError as error:
            self._refused = error
            self.obstacle = self.obstacle or error
        infos = {name: stored.info(saved) for name, saved in self._names.items()}
        plan = plan_quantised(Files(infos, settings, lambda n: stored.tensor(self._names[n])))
        self._recipes: dict[str, Recipe] = plan.recipes
        kept = {n: i for n, i in infos.items() if n not in plan.used and n not in plan.left_out}
        self._entries = {name: (stored.file_of(self._names[name]), i) for name, i in kept.items()}
        for name, recipe in plan.recipes.items():
            file = stored.file_of(self._names[recipe.parts["weight"]])
            self._entries[name] = (file, TensorInfo("F32", recipe.shape, 0, 0))
        self.record = WeightsRecord(
            scheme=tuple(sorted({*stored.schemes, *(r.scheme for r in plan.recipes.values())})),
            dequantised=stored.dequantised + len(plan.recipes),
            unwrapped=unwrapped.wrappers,
        )
        self.obstacle = self.obstacle or _empty_error(self.folder, kept) or plan.error(self.folder)

    @property
    def is_plain(self) -> bool:
        """Whether the stored tensors are the model's tensors unchanged."""
        return not self._recipes and not self.record.unwrapped and self.merging is None

    @property
    def adapted(self) -> frozenset[str]:
        """See `WeightIndex`."""
        return frozenset() if self.merging is None else self.merging.touched

    def describe(self, unused: Mapping[str, int]) -> dict[str, Any]:
        """See `WeightIndex`: `record`, and for an adapter the size of its changes."""
        adapter = None
        if self.merging is not None and self.record.adapter is not None:
            known = self.obstacle is None
            moves = measure_moves(self, self, self.merging.touched) if known else None
            base = self.merging.config.base
            named = Path(base).name if base is not None and Path(base).is_absolute() else base
            adapter = {"merged": self.record.adapter, "base": named, "moves": moves}
        return {
            "scheme": list(self.record.scheme),
            "dequantised": self.record.dequantised,
            "adapter": adapter,
            "unwrapped": list(self.record.unwrapped),
            "unused": dict(unused),
        }

    def resolve(self, trace: Tracer | None = None) -> None:
        """Find the tensors that the adapter changes, and add it to `record`. Without one: nothing.

        Args:
            trace: tells which stored tensors fill each parameter of the model. Without it, only
                adapters that name stored tensors can be merged.

        Raises:
            UnsupportedLayoutError: a part of the adapter fits no tensor.
            ShapeError: a part of the adapter has another shape than its tensor.
            MoegeoError: the adapter cannot be read.
        """
        if self._refused is not None:
            raise self._refused
        if self.merging is not None and self.record.adapter is None:
            self.merging.resolve(trace)
            self.record = replace(self.record, adapter=self.merging.words)

    def _is_changed(self, name: str) -> bool:
        if self._refused is not None:
            raise self._refused
        return self.merging is not None and self.merging.touches(name)

    def header(self, path: Path) -> Header | None:
        """See `WeightIndex`."""
        return self.stored.header(path)

    def check_type(self, model_type: str) -> None:
        """See `WeightIndex`."""
        self.stored.check_type(model_type)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `WeightIndex`."""
        self._entry(name)
        if self._is_changed(name):
            changed: np.ndarray[Any, Any] = self.tensor(name).float().numpy()
            return changed
        if name in self._recipes:
            values: np.ndarray[Any, Any] = self.tensor(name).numpy()
            return values
        return self.stored.read(self._names[name])

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """See `WeightIndex`; quantised tensors are returned in float32."""
        changed = self._is_changed(name)
        values = self.without_adapter(name, rows)
        if self.merging is None or not changed:
            return values
        return self.merging.apply(name, values, rows)

    def without_adapter(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """`tensor` of the base model, before an adapter is merged."""
        self._entry(name)
        recipe = self._recipes.get(name)
        if recipe is None:
            return self.stored.tensor(self._names[name], rows)
        return self._make(name, recipe, rows)

    def parts(self, name: str) -> tuple[tuple[Path, TensorInfo], ...]:
        """See `WeightIndex`."""
        return tuple((self.stored.file_of(n), self.stored.info(n)) for n in self._sources(name))

    def read_bytes(self, name: str) -> bytes:
        """See `WeightIndex`: the stored tensors that `name` is made of, without an adapter's."""
        return b"".join(self.stored.read_bytes(n) for n in self._sources(name))

    def stored_bytes(self, name: str, rows: tuple[int, int] | None = None) -> bytes:
        """See `WeightIndex`: the bytes of every stored tensor that a tensor is made of.

        `rows` select rows of a stored tensor only if it has as many rows as the tensor. For a
        tensor that an adapter changes, the bytes of the changed values are returned.
        """
        if self._is_changed(name):
            changed = tensor_bytes(self.tensor(name, rows))
            self.bytes_read += len(changed)
            return changed
        count = self.shape(name)[0] if self.shape(name) else None
        found = []
        for part in self._sources(name):
            own = self.stored.shape(part)
            cut = rows if own and own[0] == count else None
            found.append(self.stored.stored_bytes(part, cut))
            self.bytes_read += len(found[-1])
        return b"".join(found)

    def slices_cheaply(self, name: str) -> bool:
        """See `WeightIndex`."""
        recipe = self._recipes.get(name)
        if recipe is not None and not recipe.by_row:
            return False
        return all(self.stored.slices_cheaply(part) for part in self._sources(name))

    def is_stored(self, name: str) -> bool:
        """See `WeightIndex`."""
        if name in self._recipes or self._is_changed(name):
            return False
        return self.stored.is_stored(self._names[name])

    @property
    def size(self) -> int:
        """See `WeightIndex`."""
        return self.stored.size

    def _sources(self, name: str) -> list[str]:
        self._entry(name)
        recipe = self._recipes.get(name)
        held = [name] if recipe is None else sorted(set(recipe.parts.values()))
        return [self._names[n] for n in held]

    def _make(self, name: str, recipe: Recipe, rows: tuple[int, int] | None) -> Any:
        from moegeo_cli.checkpoints.quantised.values import dequantise

        cut = rows if recipe.by_row else None
        try:
            parts = {
                role: self.stored.tensor(self._names[n], cut) for role, n in recipe.parts.items()
            }
            shape = (cut[1] - cut[0], *recipe.shape[1:]) if cut else recipe.shape
            values = dequantise(recipe.form, parts, recipe.settings, shape)
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
            raise IncompleteCheckpointError(
                f"{name}: its quantised parts do not fit each other ({recipe.scheme})",
                found=f"{type(error).__name__}: {error}"[:300],
                hint="save or download the checkpoint again",
                context={"tensor": name},
            ) from error
        return values[slice(*rows)].contiguous() if rows and cut is None else values


def files_beside(index: EffectiveWeights) -> list[Path]:
    """Files beside the weights that change the model's tensors: quantisation settings, adapters."""
    places = [index.folder / name for name in SIDE_FILES]
    places += [index.place / name for name in (CONFIG, *ADAPTER_FILES)]
    return [place for place in places if is_there(place)]


def _empty_error(folder: Path, infos: Mapping[str, TensorInfo]) -> MoegeoError | None:
    """The error for tensors without elements; None where there are none."""
    names = [n for n, info in infos.items() if not info.elements and known_reason(n) is None]
    if not names:
        return None
    return IncompleteCheckpointError(
        f"{folder.name}: {len(names)} of {len(infos)} tensors have no elements, as ZeRO-3 leaves "
        "them if the weights are not gathered before a save",
        found=", ".join(f"{name} {list(infos[name].shape)}" for name in sorted(names)[:3]),
        hint="make the weights of DeepSpeed's own checkpoint with its zero_to_fp32.py, or train "
        "with stage3_gather_16bit_weights_on_model_save and save again",
        context={"tensors": sorted(names)[:64]},
    )
