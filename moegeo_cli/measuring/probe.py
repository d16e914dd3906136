"""Load the probe for a run: with its tokenizer, and large enough for its number of experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.routers import check_routers
from moegeo_cli.checkpoints.text_part import text_config
from moegeo_cli.errors import UsageError
from moegeo_cli.geometry.dead import tokens_for_power
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe, Source, load_probe
from moegeo_cli.probes.tokenizing import find_tokenizer

MINIMUM_TOKENS = 8192


def default_tokens(folder: RunFolder, models: Models) -> int:
    """Number of probe tokens that the dead-expert test needs; at least 8,192."""
    return _enough_tokens(folder, models.describe(folder.newest))


def _enough_tokens(folder: RunFolder, architecture: Architecture) -> int:
    routers = len(architecture.moe_layers or range(architecture.layers or 1))
    if not architecture.top_k or not architecture.experts:
        return MINIMUM_TOKENS
    if architecture.encoder_decoder:
        routers = len(check_routers(folder.newest.weights, architecture))
    needed = tokens_for_power(architecture.experts, architecture.top_k, routers)
    # A router of an encoder or a decoder sees half of the probe.
    return max(MINIMUM_TOKENS, needed * (2 if architecture.encoder_decoder else 1))


def open_probe(
    folder: RunFolder, probe: Source | Path | str | None, max_tokens: int | None, models: Models
) -> Probe:
    """Load the probe, tokenised for a run's newest checkpoint.

    Args:
        folder: the run.
        probe: a probe file, with the keys of its records; None for the bundled one.
        max_tokens: largest number of tokens; None for what the dead-expert test needs.
        models: which model the run has.

    Raises:
        ProbeError: the probe cannot be read, or does not fit the model.
        UsageError: a probe together with captures, or a config without a vocabulary size.
    """
    own = models.probe()
    source = Source.of(probe)
    if own is not None:
        if source.path is not None:
            raise UsageError(
                "--captures does not go with --probe: captured router inputs replace the probe",
                found="--captures with --probe",
                hint="give one of them",
            )
        return own if max_tokens is None else own.take(max_tokens)
    config, architecture = folder.newest.config, models.describe(folder.newest)
    loaded = load_probe(
        source,
        vocab_size=None
        if models.accepts_samples and not _has_vocabulary(config)
        else vocabulary_size(config),
        tokenizer_dir=tokenizer_place(folder.newest),
        max_tokens=max_tokens or _enough_tokens(folder, architecture),
        max_length=context_length(config),
        accepts_samples=models.accepts_samples,
        ends=document_ends(config),
    )
    return loaded.as_pairs() if architecture.encoder_decoder else loaded


def _has_vocabulary(config: Mapping[str, Any]) -> bool:
    return "vocab_size" in text_config(config) or "vocab_size" in config


def tokenizer_place(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint's tokenizer: the checkpoint's own, or that of its config."""
    places = (checkpoint.path, checkpoint.config_folder)
    return next((place for place in places if find_tokenizer(place)), checkpoint.path)


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """The vocabulary size in a config.json.

    Raises:
        UsageError: there is none.
    """
    size = text_config(config).get("vocab_size") or config.get("vocab_size")
    if not isinstance(size, int):
        raise UsageError("config.json does not say the size of the vocabulary")
    return size


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a config.json allows; None if it has no limit."""
    length = text_config(config).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def document_ends(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The end-of-document ids in a config.json; empty if there are none."""
    found = text_config(config).get("eos_token_id", config.get("eos_token_id"))
    given = found if isinstance(found, list) else [found]
    return tuple(sorted({end for end in given if type(end) is int and end >= 0}))
