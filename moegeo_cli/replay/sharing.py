"""A pass shared out among ranks by whole batches, and brought together again.

Each batch is computed exactly as a single process computes it: only the order in which sums of
float64 are added differs. Sums are added up once a checkpoint; rows of tokens, which belong to
one rank each, are handed over.

Legend: T tokens of the probe, M sampled tokens, D router input width, E experts, K experts
chosen per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.plan import Plan, Replay, RouterTrace
from moegeo_cli.replay.ranks import Ranks

Batches = Sequence[Sequence[int]]


def share_batches(batches: Batches, lengths: Sequence[int], ranks: int) -> list[list[list[int]]]:
    """Each rank's batches, in their order: the longest first to whoever has least.

    Args:
        batches: sequences of each batch.
        lengths: tokens of each sequence.
        ranks: how many share.

    Returns:
        One list a rank, empty where there are fewer batches than ranks; never for rank 0.
    """
    tokens = [sum(lengths[s] for s in batch) for batch in batches]
    load, owner = [0] * ranks, [0] * len(batches)
    for place in sorted(range(len(batches)), key=lambda b: -tokens[b]):
        owner[place] = load.index(min(load))
        load[owner[place]] += tokens[place]
    return [[list(b) for b, o in zip(batches, owner, strict=True) if o == r] for r in range(ranks)]


def collect(ranks: Ranks, outcome: Replay, plan: Plan) -> None:
    """Bring every rank's part of a pass to rank 0.

    Args:
        ranks: who shared it.
        outcome: this rank's part; on rank 0 the whole probe's when this returns.
        plan: what the pass measured.

    Raises:
        UnsupportedArchitectureError: ranks disagree on which experts carry gradient.
    """
    said = ranks.gather(_describe(outcome))
    decided = {s["unselected"] for s in said} - {"verify"}
    if len(decided) > 1:
        raise ranks.fail(
            UnsupportedArchitectureError(
                "ranks disagree on whether unselected experts carry gradient",
                found=", ".join(s["unselected"] for s in said),
                hint="report this model type, with its config.json; use one process meanwhile",
            )
        )
    ranks.add(list(_sums(outcome)))
    rows = [_rows(outcome.sequence_T, share) for share in outcome.shares]
    for place, trace in enumerate(outcome.traces):
        # The routers of a rank without a batch are not called, which is no problem of theirs.
        told = [s["traces"][place] for s, own in zip(said, rows, strict=True) if len(own)]
        trace.calls = sum(t["calls"] for t in told)
        trace.problem = next((t["problem"] for t in told if t["problem"]), None)
        if trace.problem is None:
            _hand_over(ranks, trace, rows, plan.sample_rows)
    outcome.unselected = next(iter(decided), "verify")
    notes = [note for s in said for note in s["notes"]]
    outcome.notes = [*dict.fromkeys(notes), f"batches shared among {ranks.world} ranks"]


def _describe(outcome: Replay) -> dict[str, Any]:
    traces = [{"calls": trace.calls, "problem": trace.problem} for trace in outcome.traces]
    return {"unselected": outcome.unselected, "notes": outcome.notes, "traces": traces}


def _sums(outcome: Replay) -> Iterator[torch.Tensor]:
    """Everything that adds up over sequences, as views of the arrays themselves."""
    for trace in outcome.traces:
        for accumulator in trace.fishers.values():
            yield from accumulator.sums()
        if trace.statistic is not None:
            yield from trace.statistic.parts()
    if outcome.loss_S is not None:
        yield torch.from_numpy(outcome.loss_S)


def _rows(sequence_T: np.ndarray, share: Batches) -> np.ndarray:
    """Rows of the probe whose tokens a rank replayed."""
    return np.flatnonzero(np.isin(sequence_T, [s for batch in share for s in batch]))


def _hand_over(
    ranks: Ranks, trace: RouterTrace, rows: list[np.ndarray], sample_rows: np.ndarray | None
) -> None:
    """Put the other ranks' rows into rank 0's arrays."""
    own = rows
    if trace.kept is not None:
        own = [np.flatnonzero(np.isin(trace.kept, r)) for r in rows]
    kept: list[tuple[np.ndarray | None, list[np.ndarray]]] = [
        (trace.logits_TE, own), (trace.selected_TK, own), (trace.weights_TK, own),
    ]  # fmt: skip
    if sample_rows is not None:
        if trace.sample_x_MD is None:  # none of the sampled tokens was this rank's
            shape = (len(sample_rows), trace.router.weight_ED.shape[1])
            trace.sample_x_MD = np.zeros(shape, dtype=np.float32)
        kept.append((trace.sample_x_MD, [np.flatnonzero(np.isin(sample_rows, r)) for r in rows]))
    for array, places in kept:
        for rank in range(1, ranks.world):
            if array is None or not len(places[rank]) or ranks.rank not in (0, rank):
                continue
            part = np.ascontiguousarray(array[places[rank]])
            if ranks.rank == rank:
                ranks.send(torch.from_numpy(part))
            else:
                ranks.receive(torch.from_numpy(part), rank)
                array[places[rank]] = part
