"""Keep the inputs of routers, or of their experts, at sampled rows of the probe.

Legend: N real tokens of a batch, M kept rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.replay.plan import BatchRows, Plan, RouterTrace


class KeptInputs:
    """Stores inputs at sampled rows in the traces of the routers.

    Args:
        plan: the sampled rows, and the routers for which another module's input is kept.
        tokens: T, the number of tokens of the probe.
    """

    def __init__(self, plan: Plan, tokens: int) -> None:
        self.modules = plan.input_modules
        self.idle = False  # True while the hooks must not store anything
        self._place_T = np.full(tokens, -1, dtype=np.int64)
        self._count = 0 if plan.sample_rows is None else len(plan.sample_rows)
        if plan.sample_rows is not None:
            self._place_T[plan.sample_rows] = np.arange(self._count)

    def keep(self, trace: RouterTrace, rows: BatchRows, x_ND: torch.Tensor) -> None:
        """Store the inputs of a batch at sampled rows; `rows` are the rows that the router sees."""
        places = self._place_T[rows.probe_N]
        kept = np.flatnonzero(places >= 0)
        if not len(kept):
            return
        x_MD = rows.real(x_ND.detach())[torch.from_numpy(kept).to(x_ND.device)]
        if trace.sample_x_MD is None:
            trace.sample_x_MD = np.zeros((self._count, x_MD.shape[1]), dtype=np.float32)
        trace.sample_x_MD[places[kept]] = x_MD.float().cpu().numpy()

    def hook(
        self, traces: Sequence[RouterTrace], current: Callable[[RouterTrace], BatchRows]
    ) -> list[Any]:
        """Hook the modules whose inputs are kept instead of the router's.

        Args:
            traces: the traces of the routers.
            current: a function that returns the rows of the current batch that a router sees.

        Returns:
            The handles of the hooks.
        """

        def taker(trace: RouterTrace) -> Callable[..., None]:
            def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if self.idle:
                    return
                x = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
                self.keep(trace, current(trace), x.reshape(-1, x.shape[-1]))

            return take

        return [
            self.modules[t.router.path].register_forward_pre_hook(taker(t), with_kwargs=True)
            for t in traces
            if t.router.path in self.modules
        ]
