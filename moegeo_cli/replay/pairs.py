"""Sequences for encoder-decoder models: the first tokens are the source, the rest is the target.

The decoder gets a start token and the target without its last token, and predicts the target. Each
token of the probe thus belongs to the routers of one side: a source token at the position where it
is read, a target token at the position where it is predicted.

Legend: B sequences of a batch, N their length, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError

SOURCE, TARGET = "source", "target"


def side_of(model: nn.Module, router: nn.Module) -> str:
    """The side of a router: `SOURCE` in the encoder, else `TARGET`.

    Raises:
        UnsupportedArchitectureError: the model has no `get_encoder`.
    """
    get: Any = getattr(model, "get_encoder", None)
    encoder = None if get is None else get()
    if not isinstance(encoder, nn.Module) or encoder is model:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} does not say which of its parts is the encoder",
            hint="report this model type",
        )
    return SOURCE if any(module is router for module in encoder.modules()) else TARGET


def split_inputs(model: nn.Module, ids_BN: torch.Tensor, split: int) -> dict[str, Any]:
    """The keyword arguments for an encoder-decoder model.

    Args:
        model: the model, whose config names the start token.
        ids_BN: sequences of one length.
        split: number of source tokens of each.

    Raises:
        UnsupportedArchitectureError: the config names no start token.
    """
    known = [getattr(model, name, None) for name in ("config", "generation_config")]
    starts = [getattr(config, "decoder_start_token_id", None) for config in known]
    start = next((s for s in starts if s is not None), None)
    if start is None:
        raise UnsupportedArchitectureError(
            "the config does not say which token a decoder starts with",
            hint="set decoder_start_token_id in config.json",
        )
    starts_B1 = torch.full_like(ids_BN[:, :1], start)
    return {
        "input_ids": ids_BN[:, :split],
        "decoder_input_ids": torch.cat([starts_B1, ids_BN[:, split:-1]], dim=1),
        "use_cache": False,
    }


def align_logits(logits: torch.Tensor, split: int, length: int) -> torch.Tensor:
    """The decoder's logits placed in the whole sequence, at the position before each target token.

    Args:
        logits: the decoder's logits, (B, N − split, V).
        split: number of source tokens.
        length: N.

    Returns:
        Shape (B, N, V), with zeros at positions that predict nothing (they have no label).
    """
    before = logits.new_zeros(len(logits), split - 1, logits.shape[-1])
    after = logits.new_zeros(len(logits), 1, logits.shape[-1])
    return torch.cat([before, logits[:, : length - split], after], dim=1)
