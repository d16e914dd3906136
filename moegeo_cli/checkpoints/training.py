"""Read what a training saved beside the weights: step, loss log, framework, router settings.

The verdict judges the loss log, and reports name the framework. `training_args.bin` is a
pickle of arbitrary objects and is never loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.nesting import step_folder
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.step_names import read_name
from moegeo_cli.checkpoints.text_part import text_config
from moegeo_cli.errors import MoegeoError

# Config keys, of any model, that control its routers in training.
_SETTING = re.compile(
    r"router|aux_loss|z_loss|moe_loss|jitter|capacity|norm_topk|experts?_per_tok|moe_top_?k"
    r"|n_group|topk_group|topk_method|scoring_func|routed_scaling|num_experts|routed_experts"
    r"|local_experts|correction_bias|seq_aux|aux_loss_alpha|expert_policy|moe_token_dropout"
)
_MORE_SETTINGS = ("moe_k", "top_k_experts", "expert_selection_fn", "use_expert_bias")
_TRAINER_SETTINGS = (
    "max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps",
    "save_steps",
)  # fmt: skip
# Files beside a checkpoint, or in the run's folder, that identify a framework.
_FRAMEWORK_FILES: Mapping[str, tuple[str, ...]] = {
    "llama-factory": ("trainer_log.jsonl", "llamaboard_config.yaml"),
    "verl": ("fsdp_config.json",),
    "megatron": ("latest_checkpointed_iteration.txt", "run_config.yaml"),
    "nemo": ("model_config.yaml", "*.nemo", "hf_metadata.json", ".hf_metadata"),
    "olmo-core": ("model_and_optim", ".metadata.json"),
}
_CARD_WORDS: Mapping[str, str] = {
    "llama-factory": "llama-factory", "llama_factory": "llama-factory", "axolotl": "axolotl",
    "trl": "trl", "torchtitan": "torchtitan", "olmo-core": "olmo-core", "nemo": "nemo",
    "megatron": "megatron", "nanotron": "nanotron", "verl": "verl",
}  # fmt: skip
# Keys that TRL's trainers log and transformers' Trainer does not.
_TRL_LOG_KEYS = ("mean_token_accuracy", "num_tokens", "rewards/chosen", "reward", "kl")
MAX_CARD_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What a checkpoint's files say about its training.

    Attributes:
        step: the training step; None where not known.
        tokens: input tokens seen, from the log or rounded from the checkpoint's name; None where
            neither has them.
        fraction: done share of the planned steps, 0 to 1; None where not known.
        log: log entries by step, with numbers only. A value that was NaN or infinite is None, and
            the entry's `nonfinite` lists its key.
        framework: the training framework; None where not known.
        settings: router keys of the config by their name, and the Trainer's settings as
            `trainer.<key>`.
    """

    step: int | None
    tokens: int | None
    fraction: float | None
    log: tuple[Mapping[str, Any], ...] = ()
    framework: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_training(
    path: Path, config: Mapping[str, Any], state: Mapping[str, Any], step_by_name: int | None
) -> TrainingLog:
    """Collect what a checkpoint's files tell of its training; see `Checkpoint.training`.

    Args:
        path: the checkpoint's folder.
        config: config.json, parsed.
        state: trainer_state.json, parsed; empty without one.
        step_by_name: the step by the folder's name.
    """
    log = _read_log(state)
    step = _natural(state.get("global_step"))
    if step is None:
        step = step_by_name
    name = read_name(step_folder(path).name)
    planned = _natural(state.get("max_steps"))
    settings = router_settings(config)
    settings.update(
        {
            f"trainer.{key}": value
            for key in _TRAINER_SETTINGS
            if isinstance(value := state.get(key), int | float) and math.isfinite(value)
        }
    )
    return TrainingLog(
        step=step,
        tokens=0 if step == 0 else _tokens(state, log) or name.tokens,
        fraction=step / planned if step is not None and planned else None,
        log=log,
        framework=detect_framework(path, state or None, log),
        settings=settings,
    )


def router_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config's keys that control routers, sorted.

    Returns:
        Key -> value. Keys of a text model's config are as they are, those of `ffn_config` begin
        with `ffn_config.`.
    """
    text = text_config(config)
    found: dict[str, Any] = {}
    for prefix, part in (("", config), ("", text), ("ffn_config.", text.get("ffn_config"))):
        for key, value in part.items() if isinstance(part, Mapping) else ():
            plain = value is None or isinstance(value, bool | int | float | str)
            if plain and (_SETTING.search(key) or key in _MORE_SETTINGS):
                finite = not isinstance(value, float) or math.isfinite(value)
                found[prefix + key] = value if finite else None
    return dict(sorted(found.items()))


def detect_framework(
    folder: Path, state: Mapping[str, Any] | None, log: tuple[Mapping[str, Any], ...] = ()
) -> str | None:
    """The framework that trained a checkpoint; None where not known.

    The checkpoint's folder and the run's folder above it are searched for a model card and for
    files that only one framework writes.

    Args:
        folder: the checkpoint's folder.
        state: the parsed trainer_state.json; None where there is none.
        log: its log entries.
    """
    places = (folder, folder.absolute().parent)
    for place in places:
        card = _read_card(place / "README.md")
        for word, framework in _CARD_WORDS.items():
            if re.search(rf"^\s*(?:- |library_name: ){re.escape(word)}\s*$", card, re.MULTILINE):
                return framework
    if state is not None:
        if any(is_there(place / "trainer_log.jsonl") for place in places):
            return "llama-factory"
        if any(key in entry for entry in log[-50:] for key in _TRL_LOG_KEYS):
            return "trl"
        return "transformers"
    for place in places:
        for framework, patterns in _FRAMEWORK_FILES.items():
            if any(_matches(place, pattern) for pattern in patterns):
                return framework
        if _is_torchtitan(place):
            return "torchtitan"
    return None


def _read_log(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """log_history with numbers only, sorted by step."""
    history = state.get("log_history")
    entries = []
    for raw in history if isinstance(history, list) else ():
        if not isinstance(raw, dict) or _natural(raw.get("step")) is None:
            continue
        numbers = {
            key: value
            for key, value in raw.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        broken = sorted(key for key, value in numbers.items() if not _is_finite(value))
        entry: dict[str, Any] = {**numbers, **dict.fromkeys(broken)}
        if broken:
            entry["nonfinite"] = broken
        entries.append(entry)
    return tuple(sorted(entries, key=lambda entry: int(entry["step"])))


def _is_finite(value: float) -> bool:
    """Whether a JSON number fits a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _tokens(state: Mapping[str, Any], log: tuple[Mapping[str, Any], ...]) -> int | None:
    """Input tokens seen; None where not counted (the Trainer then writes 0)."""
    counted = _natural(state.get("num_input_tokens_seen"))
    if not counted:
        for key in ("num_input_tokens_seen", "num_tokens"):
            counted = next((n for e in reversed(log) if (n := _natural(e.get(key)))), None)
            if counted:
                break
    return counted or None


def _natural(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer() and 0 <= value < 2**53:
        return int(value)
    return value if type(value) is int and 0 <= value < 2**63 else None


def _read_card(path: Path) -> str:
    """A model card's text in lower case; empty where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_CARD_BYTES).decode("utf-8", "replace").lower()
    except (OSError, ValueError, MoegeoError):
        return ""


def _matches(folder: Path, pattern: str) -> bool:
    try:
        return any(True for _ in folder.glob(pattern))
    except OSError:
        return False


def _is_torchtitan(folder: Path) -> bool:
    """Whether a folder holds a job config of torchtitan: a TOML file with one of its tables."""
    try:
        for path in sorted(folder.glob("*.toml"))[:4]:
            text = path.read_text(encoding="utf-8", errors="replace")[:MAX_CARD_BYTES]
            if re.search(r"^\[(?:job|parallelism|activation_checkpoint)\]", text, re.MULTILINE):
                return True
    except OSError:
        return False
    return False
