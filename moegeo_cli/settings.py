"""Settings of a measurement: everything besides checkpoint and probe that decides the numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from moegeo_cli.errors import UsageError

UNITS_OF_SIZE = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LEAST_MEMORY = 10**6  # bytes; torch needs more, so a smaller number is one without its unit
PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "disk")
UNPLACED = {"tp": "tensor", "tensor": "tensor", "ep": "expert", "expert": "expert"}


def read_device_map(value: str | None) -> str | None:
    """Check a device map and return it in the form that settings hold.

    Args:
        value: a word that accelerate knows, a JSON object, or the path of a JSON file.

    Returns:
        The word, or the JSON object as text with sorted keys.

    Raises:
        UsageError: none of these.
    """
    if value is None or value in PLACEMENTS or re.fullmatch(r"[a-z]{2,5}(:\d+)?", value):
        kind = UNPLACED.get(value or "")
        if kind is not None:
            raise UsageError(
                f"--device-map cannot use {kind} parallelism", found=f"--device-map {value}",
                hint="torchrun splits the probe among ranks; each rank holds the whole model",
            )  # fmt: skip
        return value
    try:
        text = value if value.lstrip().startswith("{") else Path(value).read_text("utf-8")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            "--device-map is neither a known word, nor JSON, nor a JSON file",
            found=f"{value[:80]!r}: {str(error)[:120]}",
            hint=f"{', '.join(PLACEMENTS)}, or a JSON object from module to device",
        ) from error
    if not isinstance(document, dict) or not document or not all(
        type(device) in (str, int) for device in document.values()
    ):  # fmt: skip
        raise UsageError(
            "--device-map is not an object from module to device",
            found=text[:80],
            hint='like {"model.embed_tokens": 0, "model.layers": "cpu", "model.norm": 0, '
            '"lm_head": 0}',
        )
    return json.dumps(document, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a measurement. They are part of the key under which it is stored.

    Attributes:
        fisher: the Fisher of the headline heterogeneity metrics; the categorical Fisher is always
            measured as well.
        unit: sample unit of the empirical Fisher.
        device: where the model computes; "auto" to choose.
        dtype: dtype of the computation; "auto" for the dtype of the saved weights.
        batch_size: sequences per batch; None for about 2,048 tokens per batch.
        layers: decoder layers to measure; None for all.
        seed: random seed.
        stream: read each layer from the files when it computes.
        memory: limit in bytes; None for no limit.
        device_map: a word that accelerate knows, or a JSON object from module to device.
        parallel: what ranks split: the probe ("data"), or the model by "expert" or "tensor".
    """

    fisher: str = "empirical"
    unit: str = "position"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    layers: tuple[int, ...] | None = None
    seed: int = 0
    stream: bool = False
    memory: int | None = None
    device_map: str | None = None
    parallel: str = "data"

    def __post_init__(self) -> None:
        if self.fisher != "empirical" and self.unit != "position":
            raise UsageError(
                "--unit needs --fisher empirical",
                found=f"--unit {self.unit} with --fisher {self.fisher}",
                hint="leave --unit out, or use --fisher empirical",
            )
        if self.unit == "loss_token" and (self.stream or self.memory):
            raise UsageError(
                "--unit loss_token cannot be streamed: it takes one backward pass per token, and "
                "each pass would read every layer from the files",
                found="--unit loss_token with --stream or --memory",
                hint="use --unit position",
            )
        if self.memory is not None and self.memory < 1:
            raise UsageError("--memory must be positive", found=str(self.memory))
        if self.device_map is not None and self.device != "auto" and self.device_map != "disk":
            raise UsageError(
                "--device and --device-map both say where the model computes",
                found=f"--device {self.device} with --device-map {self.device_map}",
                hint="leave one of the two out",
            )
        if self.device_map is not None and (self.stream or self.memory is not None):
            raise UsageError(
                "--device-map does not go with --stream or --memory: accelerate decides where each "
                "module lies",
                found="--device-map with --stream or --memory",
                hint="leave one of the two out",
            )

        if self.parallel != "data" and (self.device_map or self.stream or self.memory is not None):
            raise UsageError(
                "--parallel expert or tensor does not go with other options that place the model",
                found=f"--parallel {self.parallel} with --device-map, --stream or --memory",
                hint="leave one of the two out",
            )

    def facts(self) -> dict[str, Any]:
        """The settings by name, for store keys and reports. "parallel" is left out if "data"."""
        found: dict[str, Any] = dataclasses.asdict(self)
        if self.parallel == "data":
            del found["parallel"]
        return found

    @property
    def fishers(self) -> tuple[tuple[str, str], ...]:
        """Kind and unit of every Fisher that a pass computes."""
        own = (("empirical", self.unit),) if self.fisher == "empirical" else ()
        return (("categorical", "token"), *own)

    @property
    def named(self) -> tuple[str, str]:
        """Kind and unit of the Fisher that `heterogeneity` and `fhs` use."""
        if self.fisher == "empirical":
            return ("empirical", self.unit)
        return (self.fisher, "token" if self.fisher == "categorical" else "step")


def parse_bytes(text: str | int | None) -> int | None:
    """The bytes of a size like 8GB, 512MiB or 1.5G, in powers of 1024. None stays None.

    Raises:
        UsageError: not such a size, or a small number without a unit.
    """
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,6}\s*", str(text)) and int(text) < LEAST_MEMORY:
        raise UsageError(
            "--memory without a unit is in bytes",
            found=f"{text} bytes",
            hint=f"did you mean {int(text) or 8}GB?",
        )
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * UNITS_OF_SIZE[match[2].upper()]) if match else 0
    if size < 1:
        raise UsageError("--memory is not a size", found=repr(text), hint="like 8GB or 512MB")
    return size


def parse_ranges(text: str | Sequence[int] | None, option: str) -> tuple[int, ...] | None:
    """The sorted numbers of a text like "0,4-7", or of a list of int; None for all.

    Args:
        text: what was given.
        option: the flag's name, for messages.

    Raises:
        UsageError: neither.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        given = [n for n in text if type(n) is int and n >= 0] if isinstance(text, Sequence) else []
        if not given or len(given) < len(text):
            raise UsageError(f"{option} is not a list of numbers", found=repr(text)[:80])
        return tuple(sorted(set(given)))
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None or int(match[2] or match[1]) - int(match[1]) > 10**6:
            raise UsageError(f"{option} is not a list of numbers", found=text, hint="like 0,4-7")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(numbers))


READERS: Mapping[str, Callable[[Any], Any]] = {
    "layers": functools.partial(parse_ranges, option="--layers"),
    "memory": parse_bytes,
    "device_map": read_device_map,
}
Kind = TypeVar("Kind")


def settings_of(kind: type[Kind], options: Mapping[str, Any]) -> Kind:
    """Make a settings object from the options that have the names of its fields.

    Raises:
        UsageError: a value that cannot be read, or options that do not go together.
    """
    names = {f.name for f in fields(kind)} & set(options)  # type: ignore[arg-type]
    return kind(**{n: READERS[n](options[n]) if n in READERS else options[n] for n in names})
