"""How `moegeo experts` measures."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.errors import UsageError
from moegeo_cli.expert_functions.jacobians import BUFFER_BYTES
from moegeo_cli.settings import Settings

# Inputs are wide: never more tokens of them, nor more bytes over all layers.
KEPT_TOKENS, KEPT_BYTES = 8192, 2**30


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """Settings of the analysis of experts.

    `tokens` says which tokens count for a pair; `weights` whether the dispatch or the whole routing
    distribution weighs them, which is a reweighting of one model and no other training. `rank` is
    a number of dimensions, or below 1 the share of variance to explain. `directions` are random
    signs a token, 0 for whole Jacobians, None to choose by cost.
    """

    tokens: str = "routed"
    weights: str = "topk"
    rank: float = 8.0
    jacobian_tokens: int = 256
    directions: int | None = None
    layers: tuple[int, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    stream: bool = False
    memory: int | None = None
    verify: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.rank < 1 or (self.rank >= 1 and float(self.rank).is_integer())):
            raise UsageError(
                "--rank is a number of dimensions, or a share of variance between 0 and 1",
                found=f"{self.rank:g}",
            )
        if self.directions == 1:
            raise UsageError(
                "--directions 1 gives no standard error",
                found="--directions 1",
                hint="use 2 or more, or 0 for whole Jacobians",
            )

    @property
    def kept_bytes(self) -> int:
        """Bytes of inputs that are kept: a part of the bound, where there is one."""
        return KEPT_BYTES if self.memory is None else min(KEPT_BYTES, self.memory // 8)

    @property
    def buffer_bytes(self) -> int | None:
        """Bytes of experts' results, and of their pairs, at one time; None for the usual."""
        return None if self.memory is None else min(BUFFER_BYTES, self.memory // 16)

    @property
    def replay(self) -> Settings:
        """The same, as far as a replay is concerned."""
        return Settings(
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            layers=self.layers,
            seed=self.seed,
            stream=self.stream,
            memory=self.memory,
        )
