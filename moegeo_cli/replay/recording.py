"""What is kept of each router's call: sums over tokens, a sample by value, categorical Fisher.

Legend: N real tokens of a batch, T of the probe, D router input width, E experts, K experts chosen
per token.
"""

from __future__ import annotations

import numpy as np
import torch

from moegeo_cli.fisher.buffers import Buffers
from moegeo_cli.fisher.categorical import Distribution
from moegeo_cli.replay.calls import CallCount
from moegeo_cli.replay.inputs import KeptInputs
from moegeo_cli.replay.plan import CATEGORICAL, BatchRows, Plan, RouterTrace
from moegeo_cli.replay.reading import RouterCall


class CallRecorder:
    """Puts each router's calls into its trace.

    Args:
        plan: what is kept.
        tokens: T.
        calls: counts which tokens were measured.
    """

    def __init__(self, plan: Plan, tokens: int, calls: CallCount) -> None:
        self.plan, self.calls = plan, calls
        self.inputs = KeptInputs(plan, tokens)
        self.buffers = Buffers()
        self.place_T: np.ndarray = np.full(tokens, -1)  # among the kept rows
        if plan.kept_rows is not None:
            self.place_T[plan.kept_rows] = np.arange(len(plan.kept_rows))

    def record(self, trace: RouterTrace, call: RouterCall, rows: BatchRows) -> None:
        """Keep what the geometry needs of a call, and feed the categorical Fisher.

        Args:
            trace: of the router; what is kept goes into it.
            call: what the router took and gave.
            rows: where the batch's real tokens lie, for the side that the router sees.
        """
        logits_NE = rows.real(call.logits_NE.detach().reshape(-1, trace.router.experts)).float()
        selected_NK = rows.real(call.selected_NK)
        weights_NK = rows.real(call.weights_NK.detach()).float()
        if trace.selected_TK is None or trace.weights_TK is None:
            shape = (len(trace.logits_TE), selected_NK.shape[1])
            trace.selected_TK = np.zeros(shape, dtype=np.int32)
            trace.weights_TK = np.zeros(shape, dtype=np.float32)
        informed = CATEGORICAL in trace.fishers
        summed = informed or trace.statistic is not None
        found = Distribution(logits_NE, self.plan.scoring, self.buffers) if summed else None
        if trace.statistic is not None:
            trace.statistic.add(rows.sequence_spans, logits_NE, selected_NK, weights_NK, found)
        places, values = rows.probe_N, [logits_NE, selected_NK, weights_NK]
        if trace.kept is not None:
            places = self.place_T[rows.probe_N]
            own = torch.from_numpy(np.flatnonzero(places >= 0)).to(logits_NE.device)
            places, values = places[places >= 0], [v.index_select(0, own) for v in values]
        arrays = (trace.logits_TE, trace.selected_TK, trace.weights_TK)
        for array, some in zip(arrays, values, strict=True):
            array[places] = some.cpu().numpy()
        self.calls.measured(trace.router, rows.probe_N)
        if trace.router.path not in self.inputs.modules:
            self.inputs.keep(trace, rows, call.x_ND)
        if informed and found is not None:
            x_ND = rows.real(call.x_ND.detach()).float()
            trace.fishers[CATEGORICAL].add(found.information(), x_ND.square(), rows.group_spans)
