"""How to measure: what decides the numbers beyond the checkpoint and the probe."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.errors import UsageError

FISHERS = ("empirical", "categorical", "adam")
UNITS = ("position", "sequence", "loss_token")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a measurement; part of the key that it is stored under.

    `layers` are decoder layers, None for all. `fisher` and `unit` name the Fisher that the
    heterogeneity metrics at the top are of; the categorical one always comes along.
    """

    fisher: str = "empirical"
    unit: str = "position"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--fisher", self.fisher, FISHERS), ("--unit", self.unit, UNITS),
            ("--dtype", self.dtype, ("auto", *DTYPES)),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(
                    f"{option} is not one of {', '.join(known)}", found=repr(value)
                )  # fmt: skip
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError("--batch-size must be at least 1", found=str(self.batch_size))
        if self.fisher != "empirical" and self.unit != "position":
            raise UsageError(
                "--unit is a choice of the empirical Fisher",
                found=f"--unit {self.unit} with --fisher {self.fisher}",
                hint="leave --unit out, or use --fisher empirical",
            )
        if self.seed < 0:
            raise UsageError("--seed must not be negative", found=str(self.seed))

    @property
    def fishers(self) -> tuple[tuple[str, str], ...]:
        """Kinds and units that a pass feeds."""
        own = (("empirical", self.unit),) if self.fisher == "empirical" else ()
        return (("categorical", "token"), *own)

    @property
    def named(self) -> tuple[str, str]:
        """Kind and unit that `heterogeneity` and `fhs` are of."""
        if self.fisher == "empirical":
            return ("empirical", self.unit)
        return (self.fisher, "token" if self.fisher == "categorical" else "step")
