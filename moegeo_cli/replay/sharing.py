"""Distribute the batches of a pass among ranks, and collect the results on rank 0.

Each batch is computed exactly as in a single process; only the order of float64 sums differs. Sums
are added up once per checkpoint; rows of tokens are sent by the rank that computed them.

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
    """Assign batches to ranks: the largest batch first, each to the rank with the fewest tokens.

    Args:
        batches: the sequences of each batch.
        lengths: number of tokens of each sequence.
        ranks: number of ranks.

    Returns:
        One list of batches per rank, in their original order. A list is empty if there are fewer
        batches than ranks, but never that of rank 0.
    """
    tokens = [sum(lengths[s] for s in batch) for batch in batches]
    load, owner = [0] * ranks, [0] * len(batches)
    for place in sorted(range(len(batches)), key=lambda b: -tokens[b]):
        owner[place] = load.index(min(load))
        load[owner[place]] += tokens[place]
    return [[list(b) for b, o in zip(batches, owner, strict=True) if o == r] for r in range(ranks)]


def collect(ranks: Ranks, outcome: Replay, plan: Plan) -> None:
    """Collect the results of all ranks on rank 0.

    Args:
        ranks: the ranks.
        outcome: this rank's result; on rank 0 it is completed in place to that of the whole probe.
        plan: the plan of the pass.

    Raises:
        UnsupportedArchitectureError: ranks disagree on which experts carry gradient.
    """
    described = ranks.gather(_describe(outcome))
    decided = {s["unselected"] for s in described} - {"verify"}
    if len(decided) > 1:
        raise ranks.as_shared_error(
            UnsupportedArchitectureError(
                "ranks disagree on whether unselected experts carry gradient",
                found=", ".join(s["unselected"] for s in described),
                hint="report this model type, with its config.json; use one process meanwhile",
            )
        )
    ranks.add(list(_sums(outcome)))
    rows = [_rows(outcome.sequence_T, share) for share in outcome.shares]
    for place, trace in enumerate(outcome.traces):
        # On a rank without a batch, routers are not called: that is no problem.
        reports = [s["traces"][place] for s, own in zip(described, rows, strict=True) if len(own)]
        trace.calls = sum(t["calls"] for t in reports)
        trace.problem = next((t["problem"] for t in reports if t["problem"]), None)
        if trace.problem is None:
            _send_rows(ranks, trace, rows, plan.sample_rows)
    outcome.unselected = next(iter(decided), "verify")
    notes = [note for s in described for note in s["notes"]]
    outcome.notes = [*dict.fromkeys(notes), f"batches shared among {ranks.world} ranks"]


def _describe(outcome: Replay) -> dict[str, Any]:
    traces = [{"calls": trace.calls, "problem": trace.problem} for trace in outcome.traces]
    return {"unselected": outcome.unselected, "notes": outcome.notes, "traces": traces}


def _sums(outcome: Replay) -> Iterator[torch.Tensor]:
    """All sums over sequences, as views of the arrays."""
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


def _send_rows(
    ranks: Ranks, trace: RouterTrace, rows: list[np.ndarray], sample_rows: np.ndarray | None
) -> None:
    """Send the rows of other ranks to rank 0, which writes them into its arrays."""
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
