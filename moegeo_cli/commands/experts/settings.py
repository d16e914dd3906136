"""Settings of `moegeo experts`."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.errors import UsageError
from moegeo_cli.expert_functions.jacobians import BUFFER_BYTES
from moegeo_cli.settings import Settings

# Limits on kept inputs: tokens, and bytes over all layers.
KEPT_TOKENS, KEPT_BYTES = 8192, 2**30


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """Settings of the measurement of experts.

    Attributes:
        tokens: which tokens count for a pair: "routed" to either, "coselected" by both, or "all".
        weights: what weights tokens: "topk" for the combine weights, "soft" for the whole routing
            distribution.
        rank: number of dimensions of the subspaces; below 1, the share of variance to explain.
        jacobian_tokens: number of tokens at which Jacobians are computed.
        directions: random directions per token; 0 for whole Jacobians, None to choose by cost.
        layers: decoder layers to measure; None for all.
        device: where the model computes; "auto" to choose.
        dtype: dtype of the computation; "auto" for the dtype of the saved weights.
        batch_size: sequences per batch; None for the default.
        stream: read each layer from the files when it computes.
        memory: limit in bytes; None for no limit.
        verify: number of candidates to apply in memory.
        seed: random seed.
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
        """Limit on the bytes of kept inputs: at most an eighth of `memory`."""
        return KEPT_BYTES if self.memory is None else min(KEPT_BYTES, self.memory // 8)

    @property
    def buffer_bytes(self) -> int | None:
        """Limit on the bytes of Jacobian products in memory at a time; None for the default."""
        return None if self.memory is None else min(BUFFER_BYTES, self.memory // 16)

    @property
    def replay(self) -> Settings:
        """The settings of the replay."""
        return Settings(
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            layers=self.layers,
            seed=self.seed,
            stream=self.stream,
            memory=self.memory,
        )
