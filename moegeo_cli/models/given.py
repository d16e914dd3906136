"""What model a run is of: how its folder opens, what its routers are, and who gives the models.

One object answers for a run wherever it is opened, inspected, measured or compared: transformers'
models by their config.json, a user's own by a factory and options, and routers alone by inputs
that were captured earlier. Nothing here imports torch until a model is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegeo_cli.captures.files import read_captures
from moegeo_cli.checkpoints.architecture import Architecture, describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder, open_run
from moegeo_cli.checkpoints.folders import given_config
from moegeo_cli.checkpoints.own import describe_own, find_own_routers, open_own_run
from moegeo_cli.checkpoints.patterns import compile_pattern
from moegeo_cli.checkpoints.routers import RouterTensors, check_routers, layer_of
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import UnsupportedLayoutError, UsageError
from moegeo_cli.models.code_identity import (
    hash_sources,
    name_of,
    source_file,
    why_unidentified,
)
from moegeo_cli.probes import Probe

CAPTURED = "captured:routers"  # what stands for a factory where routers alone are measured


class Models:
    """transformers' models: everything is in the checkpoint's config.json."""

    identity: Mapping[str, Any] | None = None  # part of the key of stored measurements
    own = False  # whether they are a user's own
    unidentified: str | None = None  # why measurements cannot be kept: code that nothing tells
    samples = False  # whether they take other tensors than token ids
    config: Path | None = None  # the folder that --config gave

    def __init__(self, config: Path | str | None = None) -> None:
        self.config = None if config is None else given_config(config)

    def open(self, path: Path | str) -> RunFolder:
        """The run under a path.

        Raises: what opening raises.
        """
        return open_run(Path(path), self.config)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """What a checkpoint's config and files say of its routers.

        Raises: what reading the config raises, and a family that cannot be measured.
        """
        describe_architecture(checkpoint.config)
        return checkpoint.architecture

    def routers(self, index: WeightIndex, architecture: Architecture) -> Sequence[RouterTensors]:
        """The routers among a checkpoint's tensors.

        Raises: what `check_routers` raises.
        """
        return check_routers(index, architecture)

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """See that a checkpoint's files hold the routers that it should have.

        Raises: what `check_routers` raises.
        """
        check_routers(checkpoint.weights, architecture)

    def probe(self) -> Probe | None:
        """What stands in the place of a probe; None where there is one to be opened."""
        return None

    def source(self, device: Any, dtype: Any, architecture: Architecture) -> Any:
        """The `ModelSource` of these models; None for the usual one."""
        return None


@dataclass(frozen=True)
class OwnFactory(Models):
    """A user's own models.

    `factory` is the callable or `package.module:name`; the rest as the options of that name.
    """

    factory: str | Callable[..., Any]
    router: str | None = None
    top_k: int | None = None
    scoring: str | None = None
    own = True
    samples = True
    identity: Mapping[str, Any] | None = field(init=False)
    unidentified: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.router is not None:
            compile_pattern(self.router)
        identity = {
            "factory": self.name,
            "source": hash_sources(self.module),
            "router": self.router,
            "top_k": self.top_k,
            "scoring": self.scoring,
        }
        if self.module == "__main__":  # scripts of one folder all have this name
            file = source_file("__main__")
            identity["file"] = None if file is None else file.name
        object.__setattr__(self, "identity", identity)
        if self.factory != CAPTURED:
            object.__setattr__(self, "unidentified", why_unidentified(self.factory))

    @property
    def name(self) -> str:
        """What the factory is called: module and name."""
        return name_of(self.factory)

    @property
    def module(self) -> str:
        """The module that it lies in."""
        return self.name.partition(":")[0]

    def open(self, path: Path | str) -> RunFolder:
        """See `Models`; plain state dicts count as checkpoints too."""
        return open_own_run(path)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """See `Models`; options go before the config."""
        return describe_own(
            self.name, checkpoint.config, checkpoint.weights,
            pattern=self.router, top_k=self.top_k, scoring=self.scoring,
        )  # fmt: skip

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """See `Models`: a router that is quantised is refused, a missing one is met at loading."""
        index = checkpoint.weights
        for module in find_own_routers(index, self.router):
            if index.dtype(f"{module}.weight") not in {"F64", "F32", "F16", "BF16"}:
                raise UnsupportedLayoutError(
                    "the checkpoint's routers are quantised",
                    found=f"{module}.weight of dtype {index.dtype(f'{module}.weight')}",
                )

    def routers(self, index: WeightIndex, architecture: Architecture) -> Sequence[RouterTensors]:
        """See `Models`."""
        return [
            RouterTensors(layer_of(module), module, f"{module}.weight", shape,
                          f"{module}.bias" if f"{module}.bias" in index else None)
            for module, shape in find_own_routers(index, self.router).items()
        ]  # fmt: skip

    def source(self, device: Any, dtype: Any, architecture: Architecture) -> Any:
        """See `Models`.

        Raises:
            UsageError: no such module or callable.
        """
        from moegeo_cli.models.own import OwnModels

        return OwnModels(
            self.load(), self.name, pattern=self.router, top_k=architecture.top_k,
            scoring=architecture.scoring, device=device, dtype=dtype,
        )  # fmt: skip

    def load(self) -> Callable[..., Any]:
        """The callable itself.

        Raises:
            UsageError: it cannot be imported.
        """
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's module can fail in any way, sys.exit included
            raise UsageError(
                f"--model {self.factory} cannot be imported",
                found=f"{type(error).__name__}: {error}"[:300],
                hint="PACKAGE.MODULE:CALLABLE, importable from here",
            ) from error
        if not callable(found):
            raise UsageError(f"--model {self.factory} is not callable", found=type(found).__name__)
        callable_found: Callable[..., Any] = found
        return callable_found


class CapturedInputs(Models):
    """Routers alone, with inputs that were captured earlier.

    Args:
        path: the capture.
        base: whose routers: transformers' by their config, or others that options describe.
    """

    def __init__(self, path: Path, base: Models) -> None:
        self.base, self.captures, self.own = base, read_captures(path), base.own
        self.identity = {"captures": self.captures.sha256, "base": base.identity}

    def open(self, path: Path | str) -> RunFolder:
        """See `Models`."""
        return self.base.open(path)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """See `Models`."""
        return self.base.describe(checkpoint)

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """See `Models`."""
        self.base.check(checkpoint, architecture)

    def probe(self) -> Probe | None:
        """See `Models`: the captured sequences."""
        return self.captures.probe()

    def source(self, device: Any, dtype: Any, architecture: Architecture) -> Any:
        """See `Models`."""
        from moegeo_cli.models.captured import CapturedModels

        def find(index: WeightIndex) -> Sequence[RouterTensors]:
            return self.base.routers(index, architecture)

        return CapturedModels(self.captures, architecture, find, device)


def choose_models(
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    captures: Path | str | None = None,
    config: Path | str | None = None,
) -> Models:
    """The models that the options mean.

    Raises:
        UsageError: options of an own model without one, or a name of another form.
    """
    if captures is not None:
        if model is not None:
            raise UsageError(
                "captured router inputs need no model",
                found="--captures with --model",
                hint="leave --model out; --router, --top-k and --scoring still count",
            )
        given = router is not None or top_k is not None or scoring is not None
        base = OwnFactory(CAPTURED, router, top_k, scoring) if given else Models(config)
        return CapturedInputs(Path(captures), base)
    if model is None:
        options = {"--router": router, "--top-k": top_k, "--scoring": scoring}
        said = [option for option, value in options.items() if value is not None]
        if said:
            raise UsageError(
                f"{said[0]} goes with --model", hint="a known model type says it by its config.json"
            )
        return Models(config)
    if isinstance(model, str):
        module, _, name = model.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
            raise UsageError(
                "--model is not of the form PACKAGE.MODULE:CALLABLE",
                found=repr(model)[:200],
                hint="for instance my_project.models:build",
            )
    return OwnFactory(model, router, top_k, scoring)
