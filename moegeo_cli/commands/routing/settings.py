"""How `moegeo routing` measures."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.settings import Settings

# Router inputs are wide: never more tokens of them, nor more bytes over all routers.
KEPT_TOKENS, KEPT_BYTES = 4096, 2**29


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Settings of the analysis of what routing reflects.

    `pairs` of tokens are sampled of each kind. `generate` tokens continue each prompt, 0 for none.
    `verify_fingerprint` says how much of the files is hashed.
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
        _ = self.replay  # refuses what a replay refuses

    @property
    def kept_bytes(self) -> int:
        """Bytes of router inputs that are kept: a part of the bound, where there is one."""
        return KEPT_BYTES if self.memory is None else min(KEPT_BYTES, self.memory // 8)

    @property
    def replay(self) -> Settings:
        """The same, as far as a replay is concerned."""
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
