"""Settings of `moegeo routing`."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.settings import Settings

# Limits on kept router inputs: tokens, and bytes over all routers.
KEPT_TOKENS, KEPT_BYTES = 4096, 2**29


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Settings of the measurement of routing.

    Attributes:
        pairs: number of token pairs to sample, of each kind.
        generate: number of tokens by which the model continues each prompt; 0 for none.
        layers: decoder layers to measure; None for all.
        device: where the model computes; "auto" to choose.
        dtype: dtype of the computation; "auto" for the dtype of the saved weights.
        batch_size: sequences per batch; None for the default.
        stream: read each layer from the files when it computes.
        memory: limit in bytes; None for no limit.
        seed: random seed.
        verify_fingerprint: how much of the files is hashed: "sampled" or "full".
    """

    pairs: int = 8192
    generate: int = 0
    layers: tuple[int, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    stream: bool = False
    memory: int | None = None
    seed: int = 0
    verify_fingerprint: str = "sampled"

    def __post_init__(self) -> None:
        _ = self.replay  # raises for settings that a replay refuses

    @property
    def kept_bytes(self) -> int:
        """Limit on the bytes of kept router inputs: at most an eighth of `memory`."""
        return KEPT_BYTES if self.memory is None else min(KEPT_BYTES, self.memory // 8)

    @property
    def replay(self) -> Settings:
        """The settings of the replay."""
        return Settings(
            fisher="categorical",
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            layers=self.layers,
            seed=self.seed,
            stream=self.stream,
            memory=self.memory,
        )
