"""Read adapter_config.json: rank, scale and kind of a peft adapter.

A key that is set and is in neither list below may change the merged weights. It is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from moegeo_cli.checkpoints.indexes import read_json
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

CONFIG = "adapter_config.json"
MAX_BYTES = 16_000_000
MERGE = (
    "merge it where it was trained (peft: merge_and_unload) and save the result, or move the "
    "adapter away to measure the weights alone"
)
# Keys that do not change the merged weights.
_NEUTRAL = frozenset({
    "auto_mapping", "base_model_class", "revision", "task_type", "inference_mode",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform",
    "layers_pattern", "lora_dropout", "bias", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "megatron_config", "megatron_core", "runtime_config", "qalora_group_size",
})  # fmt: skip
# Keys that `read_adapter_config` uses.
_READ = frozenset({
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern",
    "use_rslora", "fan_in_fan_out", "use_dora", "target_parameters", "init_lora_weights",
    "peft_version",
})  # fmt: skip
# Patterns come from an untrusted file: these bounds limit their memory and time. Patterns that peft
# writes are module names, their endings, alternatives and single repeats.
_LONGEST = 1000
_REPEATED_GROUP = re.compile(r"\)[*+{]|\{")
_SECONDS = 1.0
# Values of init_lora_weights that leave the base model's weights as they are.
_STARTS = (None, True, False, "true", "false", "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The content of an adapter_config.json.

    Attributes:
        base: name or path of the base model; None where it names none.
        rank: r, for modules that no `rank_pattern` matches.
        alpha: lora_alpha, for modules that no `alpha_pattern` matches.
        rank_pattern: pattern of module names -> r.
        alpha_pattern: pattern of module names -> lora_alpha.
        rslora: whether alpha is divided by the square root of r, not by r.
        transposed: fan_in_fan_out: whether weights are stored (inputs, outputs).
        dora: whether rows are scaled to learned norms.
        parameters: targets that are parameters, not modules.
        inputs_first: whether peft took the first dimension of each expert's matrix as its inputs,
            whatever the model. Versions before 0.19 did.
    """

    base: str | None
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    transposed: bool
    dora: bool
    parameters: tuple[str, ...]
    inputs_first: bool = False

    def rank_of(self, key: str) -> int:
        """The rank r of a module or parameter, by its name in the model."""
        return self.rank_pattern.get(_matching(self.rank_pattern, key) or "", self.rank)

    def scale_of(self, key: str) -> float:
        """The factor s of B·A for a module or parameter, by its name in the model."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, key) or "", self.alpha)
        rank = self.rank_of(key)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, parameter: str) -> bool:
        """Whether `target_parameters` names a parameter of the model."""
        return any(parameter == t or parameter.endswith(f".{t}") for t in self.parameters)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read a folder's adapter_config.json.

    Raises:
        IncompleteCheckpointError: it is absent, truncated, or holds an impossible value.
        UnsupportedLayoutError: a kind of adapter that moegeo does not merge; the error names it.
    """
    path = folder / CONFIG
    if not is_there(path):
        raise IncompleteCheckpointError(
            f"{folder.name} holds an adapter without its {CONFIG}",
            found="its rank and scale are not in the tensors",
            hint=f"copy {CONFIG} beside it",
        )
    document = read_json(path, MAX_BYTES)
    if not isinstance(document, dict):
        raise _invalid_error(folder, "the whole of it", document)
    kind = document.get("peft_type")
    if kind != "LORA":
        raise _unsupported_error(folder, "peft_type", kind)
    for key, value in document.items():
        if key not in _NEUTRAL | _READ and value not in (None, False, [], {}, ""):
            raise _unsupported_error(folder, key, value)
    start = document.get("init_lora_weights")
    if not any(start is known or start == known for known in _STARTS):
        raise _unsupported_error(folder, "init_lora_weights", start)
    base = document.get("base_model_name_or_path")
    ranks = _numbers(folder, document, "rank_pattern")
    if any(int(value) != value for value in ranks.values()):
        raise _invalid_error(folder, "rank_pattern", document["rank_pattern"])
    return AdapterConfig(
        base=base if isinstance(base, str) and base else None,
        rank=int(_number(folder, "r", document.get("r", 8), whole=True)),
        alpha=_number(folder, "lora_alpha", document.get("lora_alpha", 8)),
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern=_numbers(folder, document, "alpha_pattern"),
        rslora=document.get("use_rslora") is True,
        transposed=document.get("fan_in_fan_out") is True,
        dora=document.get("use_dora") is True,
        parameters=_names(folder, document, "target_parameters"),
        inputs_first=_is_before(document.get("peft_version"), (0, 19)),
    )


def _matching(patterns: Mapping[str, Any], key: str) -> str | None:
    """The first pattern that matches the end of a name, as in peft; None where none does."""
    for pattern in patterns:
        try:
            if regex.match(rf"(.*\.)?({pattern})$", key, timeout=_SECONDS):
                return pattern
        except TimeoutError:
            raise IncompleteCheckpointError(
                f"{CONFIG} cannot be used: one of its patterns takes too long",
                found=f"{pattern[:200]!r}, on the name {key[:100]!r}",
                hint="write rank_pattern and alpha_pattern with plain module names",
            ) from None
    return None


def _is_before(version: Any, first: tuple[int, int]) -> bool:
    """Whether a version is earlier than `first`; true for none, since peft < 0.18 wrote none."""
    match = re.match(r"(\d{1,6})\.(\d{1,6})", version) if isinstance(version, str) else None
    return match is None or (int(match[1]), int(match[2])) < first


def _number(folder: Path, key: str, value: Any, *, whole: bool = False) -> float:
    good = type(value) is int or (type(value) is float and math.isfinite(value) and not whole)
    if not good or (whole and value < 1):
        raise _invalid_error(folder, key, value)
    return float(value)


def _numbers(folder: Path, document: Mapping[str, Any], key: str) -> dict[str, float]:
    table = document.get(key) or {}
    if not isinstance(table, dict):
        raise _invalid_error(folder, key, table)
    for pattern in table:
        if len(pattern) > _LONGEST or _REPEATED_GROUP.search(pattern):
            raise _invalid_error(folder, key, pattern)
        try:
            re.compile(pattern)
            regex.compile(pattern)
        except (re.error, regex.error, RecursionError):
            raise _invalid_error(folder, key, pattern) from None
    whole = key == "rank_pattern"
    return {pattern: _number(folder, key, n, whole=whole) for pattern, n in table.items()}


def _names(folder: Path, document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = document.get(key) or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _invalid_error(folder, key, found)
    return tuple(sorted(found))


def _unsupported_error(folder: Path, key: str, value: Any) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"{folder.name} holds an adapter of a kind that moegeo does not merge: {key} is {value!r}"[
            :300
        ],
        found=CONFIG,
        hint=f"{MERGE}; plain LoRA and DoRA are merged (docs/reference/layouts.md)",
        context={"key": key},
    )


def _invalid_error(folder: Path, key: str, value: Any) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"{CONFIG} of {folder.name} cannot be used",
        found=f"{key}: {value!r}"[:300],
        hint="copy the adapter again",
    )
