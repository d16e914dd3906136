"""Opens a checkpoint's config with transformers, and the class of its language model."""

from __future__ import annotations

import copy
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.text_part import expert_key, resolve_conflicts
from moegeo_cli.errors import UnsupportedArchitectureError


def open_config(checkpoint: Checkpoint, experts: int | None = None) -> Any:
    """The config of the language model, without its quantisation part.

    Where config.json holds E, K or groups twice, the model gets the key that counts: transformers
    itself lets the older name win in some families.

    Args:
        checkpoint: whose config it is.
        experts: E of every layer; None for what the config says.

    Raises: what transformers and reading the file raise.
    """
    from transformers import AutoConfig

    document = checkpoint.config
    _, stated = expert_key(document)
    values = resolve_conflicts(document)[1]
    if experts is not None and stated.key is not None:
        values[stated.key] = experts
    if isinstance(stated.value, list) and experts is not None:  # which no class takes
        config = _of_document(document, experts)
    else:
        config = AutoConfig.from_pretrained(
            checkpoint.config_folder, trust_remote_code=False, local_files_only=True
        )
    config = unquantised(language_config(config))
    part = config.get_text_config()
    for key, value in values.items():
        *owners, name = key.split(".")
        held = part
        for owner in owners:
            held = getattr(held, owner)
        setattr(held, name, value)
    return config


def _of_document(document: dict[str, Any], experts: int) -> Any:
    """The config of a document whose number of experts is a list, with one number instead."""
    from transformers import AutoConfig

    document = copy.deepcopy(document)
    held, stated = expert_key(document)
    *owners, name = str(stated.key).split(".")
    for owner in owners:
        held = held[owner]
    assert isinstance(held, dict)
    held[name] = experts
    return AutoConfig.for_model(document.pop("model_type"), **document)


def unquantised(config: Any) -> Any:
    """A config without its quantisation part: tensors are given as the values that they stand for.

    Otherwise transformers would look for the packages that each scheme needs.
    """
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def language_config(config: Any) -> Any:
    """The config of the part that writes text; of a thinker and a talker, the thinker's."""
    return getattr(config, "thinker_config", config)


def auto_class(config: Any) -> tuple[Any, Any]:
    """The class that opens a config's language model with its head, and the model's own class.

    A model of several towers without a causal class of its own is opened whole: its language model
    runs on token ids alone.

    Raises:
        UnsupportedArchitectureError: transformers has none.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForSeq2SeqLM,
    )

    autos = [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]
    if getattr(config, "is_encoder_decoder", False):
        autos = [AutoModelForSeq2SeqLM]
    for auto in autos:
        if type(config) in auto._model_mapping:
            return auto, auto._model_mapping[type(config)]
    raise UnsupportedArchitectureError(
        f"transformers has no language model of type {config.model_type}",
        found=type(config).__name__,
        hint="moegeo replays language models; see docs/reference/architectures.md",
    )
