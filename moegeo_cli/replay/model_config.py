"""The config of a checkpoint as transformers has it, and the class that opens its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.architecture import counting_values
from moegeo_cli.checkpoints.discover import read_config
from moegeo_cli.errors import UnsupportedArchitectureError


def open_config(folder: Path) -> Any:
    """The config of the part that writes, without what it says of quantisation.

    Where config.json holds E, K or groups twice, the model gets the key that counts: transformers
    itself lets the older name win in some families.

    Args:
        folder: of config.json.

    Raises: what transformers and reading the file raise.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config = unquantised(language_config(config))
    part = config.get_text_config()
    for key, value in counting_values(read_config(folder))[1].items():
        *owners, name = key.split(".")
        held = part
        for owner in owners:
            held = getattr(held, owner)
        setattr(held, name, value)
    return config


def unquantised(config: Any) -> Any:
    """A config without what it says of quantisation: tensors are given as the values they mean.

    Otherwise transformers would look for the packages that each scheme needs.
    """
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def language_config(config: Any) -> Any:
    """The config of the part that writes: of a thinker and a talker, the thinker's."""
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
        hint="moegeo replays language models; see docs/architectures.md",
    )
