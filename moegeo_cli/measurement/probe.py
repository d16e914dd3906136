"""The probe of a run: read with its tokenizer, as large as its experts ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.architecture import describe_architecture, text_config
from moegeo_cli.checkpoints.discover import CheckpointFolder, RunFolder, read_config
from moegeo_cli.errors import UsageError
from moegeo_cli.geometry.dead import tokens_for_power
from moegeo_cli.probes import Probe, load_probe
from moegeo_cli.probes.tokenizing import find_tokenizer

MINIMUM_TOKENS = 8192


def default_tokens(folder: RunFolder) -> int:
    """Enough probe tokens for the dead-expert test to be able to find one; at least 8,192."""
    architecture = describe_architecture(read_config(folder.newest.config_folder))
    routers = len(architecture.moe_layers or range(architecture.layers or 1))
    if not architecture.top_k:
        return MINIMUM_TOKENS
    return max(MINIMUM_TOKENS, tokens_for_power(architecture.experts, architecture.top_k, routers))


def open_probe(folder: RunFolder, probe: Path | str | None, max_tokens: int | None) -> Probe:
    """The probe as a run's newest checkpoint reads it.

    Args:
        folder: the run.
        probe: a probe file; None for the bundled one.
        max_tokens: at most so many; None for what the dead-expert test needs.

    Raises:
        ProbeError: not readable, or not for this model.
    """
    config = read_config(folder.newest.config_folder)
    return load_probe(
        Path(probe) if probe is not None else None,
        vocab_size=vocabulary_of(config),
        tokenizer_dir=_tokenizer_place(folder.newest),
        max_tokens=max_tokens or default_tokens(folder),
        max_length=_context(config),
    )


def _tokenizer_place(checkpoint: CheckpointFolder) -> Path:
    """Where a checkpoint's tokenizer is looked for: with it, else with its config."""
    places = (checkpoint.path, checkpoint.config_folder)
    return next((place for place in places if find_tokenizer(place)), checkpoint.path)


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Size of the vocabulary that a config.json states."""
    size = text_config(config).get("vocab_size") or config.get("vocab_size")
    if not isinstance(size, int):
        raise UsageError("config.json does not say the size of the vocabulary")
    return size


def _context(config: Mapping[str, Any]) -> int | None:
    length = text_config(config).get("max_position_embeddings")
    return length if isinstance(length, int) else None
