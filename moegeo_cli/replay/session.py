"""The replay of a probe: passes with smaller batches until one fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.errors import ResourceError
from moegeo_cli.probes import Sample
from moegeo_cli.replay.forward_pass import UNGROUPED, Pass
from moegeo_cli.replay.kernels import compute_experts_by
from moegeo_cli.replay.out_of_memory import is_out_of_memory
from moegeo_cli.replay.plan import Plan, Replay
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.replay.sharing import collect
from moegeo_cli.routers.finding import Router

EAGER = "experts computed one by one: their width does not suit the grouped product"


def replay(
    model: nn.Module,
    routers: list[Router],
    ids: list[np.ndarray] | list[Sample],
    labels: list[np.ndarray | None],
    plan: Plan,
    *,
    progress: Callable[[int], None] | None = None,
    kind: Callable[..., Pass] | None = None,
    ranks: Ranks | None = None,
) -> Replay:
    """Run the probe once, halving the batch where memory runs out.

    Args:
        model: what is called with each batch.
        routers: those of its routers that are measured.
        ids: the token ids of each sequence; or samples, which hold their own labels.
        labels: of each sequence of token ids; None to predict every next token.
        plan: what is measured.
        progress: hears how many tokens were replayed.
        kind: how a pass goes about it; None for batch after batch through the whole model.
        ranks: who shares the probe, all calling this alike: rank 0 has the whole outcome, the
            others their own part. None for this process alone.

    Raises:
        ResourceError: not even one sequence at a time fits.
        UnsupportedArchitectureError: a router's output cannot be read.
    """
    size, kind = plan.batch_size, kind or Pass
    # A run's model stays as it is from checkpoint to checkpoint, and so must what is said of it.
    notes = [EAGER] if getattr(model, "_moegeo_eager", False) else []
    while True:
        try:
            once = partial(
                _run_once, kind, ranks, model, routers, ids, labels, plan, size, progress
            )
            result = once() if ranks is None else ranks.together(once)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if UNGROUPED in str(error) and EAGER not in notes:
                compute_experts_by(model, "eager")
                model._moegeo_eager = True  # type: ignore[assignment]
                notes.append(EAGER)
                continue
            if not is_out_of_memory(error):
                raise
            current = size or max(1, 2048 // max(len(i) for i in ids))
            if current == 1:
                raise ResourceError(
                    "not enough memory for one sequence at a time",
                    found=str(error).splitlines()[0],
                    hint="use --dtype bfloat16, --device cpu, or a probe of shorter sequences",
                ) from error
            size = current // 2
            notes.append(f"batch size halved to {size}: out of memory")
            continue
        result.notes = notes + result.notes
        if ranks is not None and ranks.share_probe:
            collect(ranks, result, plan)
        return result


def _run_once(kind: Callable[..., Pass], ranks: Ranks | None, *arguments: Any) -> Replay:
    attempt = kind(*arguments)
    attempt.ranks = ranks
    return attempt.run()
