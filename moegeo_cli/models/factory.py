"""`OwnFactory`: the form of a run whose models a user's own factory builds (--model)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.own import describe_own, find_own_routers, open_own_run
from moegeo_cli.checkpoints.patterns import compile_pattern
from moegeo_cli.checkpoints.routers import RouterTensors, layer_of
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import UnsupportedLayoutError, UsageError
from moegeo_cli.models.code_identity import hash_sources, name_of, source_file, why_unidentified
from moegeo_cli.models.given import Models

CAPTURED = "captured:routers"  # name in place of a factory, if only routers are measured


@dataclass(frozen=True)
class OwnFactory(Models):
    """A user's own models; see `Models`. Options describe the routers.

    Attributes:
        factory: the callable, or `package.module:name`.
        router: pattern of the routers' module names; None to find routers by structure.
        top_k: experts chosen per token; None if config.json states it.
        scoring: name of the routers' scoring; None if config.json states it.
    """

    factory: str | Callable[..., Any]
    router: str | None = None
    top_k: int | None = None
    scoring: str | None = None
    own = True
    accepts_samples = True
    identity: Mapping[str, Any] | None = field(init=False)
    store_problem: str | None = field(init=False, default=None)

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
        if self.module == "__main__":  # the name of every script
            file = source_file("__main__")
            identity["file"] = None if file is None else file.name
        object.__setattr__(self, "identity", identity)
        if self.factory != CAPTURED:
            object.__setattr__(self, "store_problem", why_unidentified(self.factory))

    @property
    def name(self) -> str:
        """The factory's name: module and callable."""
        return name_of(self.factory)

    @property
    def module(self) -> str:
        """The module that defines the factory."""
        return self.name.partition(":")[0]

    def open(self, path: Path | str) -> RunFolder:
        """See `Models`; a file with a plain state dict is a checkpoint too."""
        return open_own_run(path)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """See `Models`; options override the config."""
        return describe_own(
            self.name, checkpoint.config, checkpoint.weights,
            pattern=self.router, top_k=self.top_k, scoring=self.scoring,
        )  # fmt: skip

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """See `Models`: refuse quantised routers. A missing router is an error when loading."""
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
            UsageError: the factory cannot be imported or called.
        """
        from moegeo_cli.models.own import OwnModels

        return OwnModels(
            self.load(), self.name, pattern=self.router, top_k=architecture.top_k,
            scoring=architecture.scoring, device=device, dtype=dtype,
        )  # fmt: skip

    def load(self) -> Callable[..., Any]:
        """The callable itself.

        Raises:
            UsageError: it cannot be imported, or is not callable.
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
