"""A sequence as an encoder and a decoder take it: a source, then a target.

The first tokens of a sequence are the source; the decoder is given a start token and the target
without its last token, and predicts the target. Every token of the probe is so the row of one
side's routers: a source token where it is read, a target token where it is predicted.

Legend: B sequences of a batch, N their length, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError

SOURCE, TARGET = "source", "target"


def side_of(model: nn.Module, router: nn.Module) -> str:
    """The side on which a router is.

    Raises:
        UnsupportedArchitectureError: the model does not say what its encoder is.
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
    """What the model is called with.

    Args:
        model: whose config names the start token.
        ids_BN: sequences of one length.
        split: how many tokens of each are the source.

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
    """The decoder's logits as those of a sequence, each at the position before its token.

    Positions that predict nothing have zeros: no label stands against them.
    """
    before = logits.new_zeros(len(logits), split - 1, logits.shape[-1])
    after = logits.new_zeros(len(logits), 1, logits.shape[-1])
    return torch.cat([before, logits[:, : length - split], after], dim=1)
