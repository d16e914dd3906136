"""Open a checkpoint's config with transformers, and find the class of its language model."""

from __future__ import annotations

import copy
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.text_part import expert_key, resolve_conflicts
from moegeo_cli.errors import UnsupportedArchitectureError


def open_config(checkpoint: Checkpoint, experts: int | None = None) -> Any:
    """The config of the language model, without its quantisation part.

    If config.json states E, K or the number of groups under two keys, the key that
    `resolve_conflicts` prefers is used. transformers prefers the older one in some families.

    Args:
        checkpoint: the checkpoint.
        experts: number of experts of every layer; None for the config's own.

    Raises:
        MoegeoError: config.json cannot be read.
        Exception: transformers cannot open the config; `failures.explain` turns it into an error
            of moegeo.
    """
    from transformers import AutoConfig

    document = checkpoint.config
    _, stated = expert_key(document)
    values = resolve_conflicts(document)[1]
    if experts is not None and stated.key is not None:
        values[stated.key] = experts
    if isinstance(stated.value, list) and experts is not None:  # no config class accepts a list
        config = _with_one_count(document, experts)
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


def _with_one_count(document: dict[str, Any], experts: int) -> Any:
    """The config of a document that lists numbers of experts by layer, with one number instead."""
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
    """A config without its quantisation part, since moegeo dequantises the tensors itself.

    With it, transformers would require the packages of the quantisation scheme.
    """
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def language_config(config: Any) -> Any:
    """The config of the part that generates text; of a thinker and a talker, the thinker's."""
    return getattr(config, "thinker_config", config)


def auto_class(config: Any) -> tuple[Any, Any]:
    """The auto class that opens a config's language model with its head, and the model's class.

    A multimodal model without a causal class is opened with all its towers: its language model runs
    on token ids alone.

    Raises:
        UnsupportedArchitectureError: transformers has no such class.
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
