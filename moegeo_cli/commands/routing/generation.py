"""Lets the model continue prompts, one token at a time, sampled from its whole vocabulary.

There is no key-value cache: each step is a full forward pass, because every architecture has one.
The cost is one pass over the prompts for each new token.

Legend: B prompts of one length, N their tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.batches import TOKENS_PER_BATCH


def continue_prompts(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    count: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Sample `count` tokens after each prompt, at temperature 1.

    Args:
        model: takes `input_ids` and returns logits of every position.
        prompts: token ids of each prompt, none empty. Prompts of the same length form batches, so
            nothing is padded.
        count: number of new tokens; an end-of-text token does not stop the sampling.
        seed: random seed; tokens are sampled on the CPU.
        progress: called with the number of tokens sampled since the last call.

    Returns:
        The new tokens of each prompt, int64, shape (count,).

    Raises:
        UnsupportedArchitectureError: the model's own code fails, or its logits are not finite.
    """
    device = next(model.parameters()).device
    # Only the logits of the last position are needed; some models can leave out the others.
    last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"use_cache": False, **({"logits_to_keep": 1} if last_only else {})}
    generator = torch.Generator().manual_seed(seed)
    found: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(prompts)
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for length, places in sorted(by_length.items()):
        step = max(1, TOKENS_PER_BATCH // (length + count))
        for start in range(0, len(places), step):
            batch = places[start : start + step]
            ids_BN = torch.from_numpy(np.stack([prompts[p] for p in batch])).to(device)
            for _ in range(count):
                drawn_B1 = _draw(model, ids_BN, options, generator)
                ids_BN = torch.cat([ids_BN, drawn_B1.to(device)], dim=1)
                if progress:
                    progress(len(batch))
            for place, row in zip(batch, ids_BN[:, length:].cpu().numpy(), strict=True):
                found[place] = row
    return found


def _draw(
    model: nn.Module,
    ids_BN: torch.Tensor,
    options: Mapping[str, object],
    generator: torch.Generator,
) -> torch.Tensor:
    """Sample the next token of each prompt: shape (B, 1)."""
    try:
        with torch.no_grad():
            logits_BV = model(input_ids=ids_BN, **options).logits[:, -1].double().cpu()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UnsupportedArchitectureError(
            "the model cannot continue a prompt: its own forward pass fails",
            found=f"{type(error).__name__}: {error}"[:300],
            hint="leave --generate out",
        ) from error
    if not torch.isfinite(logits_BV).all():
        raise UnsupportedArchitectureError(
            "the model cannot continue a prompt: its logits are not finite",
            hint="leave --generate out",
        )
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)
