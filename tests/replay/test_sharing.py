"""What ranks found alone is on rank 0 what one process finds; two threads stand in for ranks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.errors import MoegeoError, UnsupportedArchitectureError
from moegeo_cli.replay.plan import Plan, Replay, RouterTrace
from moegeo_cli.replay.sharing import collect
from tests.traces import KINDS, LENGTHS, WIDTH, replay_of, sequences_of, trace_of

WAIT = 20.0  # seconds
GROUPS_S = np.arange(len(LENGTHS)) % 3
SHARES = [[[0, 1], [4]], [[2, 3], [5]]]  # batches of both ranks
SAMPLE = np.array([1, 6, 15, 20, 30, 41])
PLAN = Plan(KINDS, GROUPS_S, sample_rows=SAMPLE)


class Meeting:
    """Where two threads exchange what ranks exchange."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=WAIT)
        self.told: list[Any] = [None, None]
        self.sent: Queue[torch.Tensor] = Queue()


class Rank:
    """As much of `Ranks` as collecting needs."""

    world = 2

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.meeting = rank, meeting

    def gather(self, own: Any) -> list[Any]:
        self.meeting.told[self.rank] = own
        self.meeting.barrier.wait()
        found = list(self.meeting.told)
        self.meeting.barrier.wait()
        return found

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Like a reduction: what rank 1 holds is added to rank 0's."""
        both = self.gather(tensors)
        if self.rank == 0:
            for own, other in zip(*both, strict=True):
                own += other
        self.meeting.barrier.wait()

    def send(self, tensor: torch.Tensor) -> None:
        self.meeting.sent.put(tensor)

    def receive(self, tensor: torch.Tensor, rank: int) -> None:
        tensor.copy_(self.meeting.sent.get(timeout=WAIT))

    def as_shared_error(self, error: MoegeoError) -> MoegeoError:
        return error


def whole() -> Replay:
    traces = [trace_of(1, layer) for layer in (0, 1)]
    for trace in traces:
        assert trace.sample_x_MD is not None
        trace.sample_x_MD = trace.sample_x_MD[SAMPLE]
        trace.calls = 4
    return replay_of(traces)


def part(rank: int) -> Replay:
    """A rank's half of the same pass: rows and sums of its own sequences."""
    found = copy.deepcopy(whole())
    own = [s for batch in SHARES[rank] for s in batch]
    mine_T = np.isin(sequences_of(), own)
    for trace in found.traces:
        for array in (trace.logits_TE, trace.selected_TK, trace.weights_TK):
            assert array is not None
            array[~mine_T] = 0
        assert trace.sample_x_MD is not None
        trace.sample_x_MD[~mine_T[SAMPLE]] = 0
        for fisher in trace.fishers.values():
            for sums in fisher.sums():
                sums *= 0.25 if rank else 0.75
        trace.calls = 2
    assert found.loss_S is not None
    found.loss_S[[s for s in range(len(LENGTHS)) if s not in own]] = 0
    found.shares, found.notes = SHARES, ["one note", f"of rank {rank}"]
    return found


def together(change: Callable[[int, Replay], None] = lambda rank, found: None) -> Replay:
    """Rank 0's outcome; what a rank raises is raised."""
    meeting, parts = Meeting(), [part(0), part(1)]
    for rank, found in enumerate(parts):
        change(rank, found)
    with ThreadPoolExecutor(2) as threads:
        for done in [
            threads.submit(collect, Rank(rank, meeting), found, PLAN)  # type: ignore[arg-type]
            for rank, found in enumerate(parts)
        ]:
            done.result(WAIT)
    return parts[0]


def test_rank_0_has_the_rows_and_sums_of_all() -> None:
    found, one = together(), whole()
    np.testing.assert_array_equal(found.loss_S, one.loss_S)
    for got, want in zip(found.traces, one.traces, strict=True):
        for name in ("logits_TE", "selected_TK", "weights_TK", "sample_x_MD"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
        for kind in KINDS:
            for a, b in zip(got.fishers[kind].totals(), want.fishers[kind].totals(), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)
        assert got.calls == 4
    assert found.notes == ["one note", "of rank 0", "of rank 1", "batches shared among 2 ranks"]


def test_rows_that_rank_0_kept_none_of_arrive() -> None:
    """Only some rows are kept where sums stand for the rest; none of them may be rank 0's."""
    kept = np.flatnonzero(np.isin(sequences_of(), [2, 5]))

    def keep(rank: int, found: Replay) -> None:
        for trace in found.traces:
            trace.kept = kept
            trace.logits_TE = trace.logits_TE[kept].copy()
            trace.selected_TK = trace.weights_TK = None
            if rank == 0:
                trace.sample_x_MD = None

    found, one = together(keep), whole()
    others_M = np.isin(sequences_of()[SAMPLE], [2, 3, 5])
    for got, want in zip(found.traces, one.traces, strict=True):
        np.testing.assert_array_equal(got.logits_TE, want.logits_TE[kept])
        assert got.sample_x_MD is not None
        assert want.sample_x_MD is not None
        assert got.sample_x_MD.shape == (len(SAMPLE), WIDTH)
        np.testing.assert_array_equal(got.sample_x_MD[others_M], want.sample_x_MD[others_M])


def test_a_problem_of_any_rank_is_the_routers_and_its_rows_stay() -> None:
    def fail(rank: int, found: Replay) -> None:
        if rank:
            found.traces[0].problem = "the router was not called for 2 of 9 tokens"

    found = together(fail)
    assert found.traces[0].problem == "the router was not called for 2 of 9 tokens"
    assert found.traces[1].problem is None


def test_a_rank_without_a_batch_has_no_problem() -> None:
    def idle(rank: int, found: Replay) -> None:
        found.shares = [[[0, 1, 2, 3, 4, 5]], []]
        if rank:
            found.unselected = "verify"
            for trace in found.traces:
                trace.problem, trace.calls = "the router was not called", 0

    found = together(idle)
    assert [trace.problem for trace in found.traces] == [None, None]
    assert found.unselected == "zero"


def test_ranks_that_found_another_gradient_end_with_one_error() -> None:
    def differ(rank: int, found: Replay) -> None:
        found.unselected = "dense" if rank else "zero"

    with pytest.raises(UnsupportedArchitectureError, match="ranks disagree") as error:
        together(differ)
    assert error.value.found == "zero, dense"


def test_the_traces_of_the_parts_are_not_those_of_the_whole() -> None:
    """Else the tests above would hold of a `collect` that does nothing."""
    traces: list[RouterTrace] = part(0).traces
    assert not np.array_equal(traces[0].logits_TE, whole().traces[0].logits_TE)
