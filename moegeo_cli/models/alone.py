"""Routers without a model: their inputs were captured, their weights are read from the files.

A router is computed from its weight, its biases and the selection rule of its architecture. If the
capture is of the same checkpoint, the logits and selected experts in it are used as they are.

Legend: T captured rows, D router input width, E experts, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.captures.rows import CapturedRouter, Column
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.routers import RouterTensors
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import ProbeError, UnsupportedArchitectureError
from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.geometry.selection import SelectionRule
from moegeo_cli.replay.forms import Inputs, ModelAdapter
from moegeo_cli.routers.finding import Router
from moegeo_cli.scorings import find_scoring

NO_LOSS = "router inputs alone have no loss"
NO_EXPERTS = "captured router inputs: no expert was run"
SAME_INPUT = "experts of this type get the same input as their router"
ASSUMED_INPUT = "assumed, not confirmed: experts get the same input as their router"


class LoneRouter(nn.Module):
    """One router that maps captured inputs to (logits, combine weights, selected experts).

    Args:
        tensors: names of its tensors in the files.
        index: the checkpoint's tensors.
        captured: its captured columns; None if nothing of it was captured.
        architecture: its scoring and selection rule.
        device: device of the weights.

    Attributes:
        captured_outputs: whether captured logits and selected experts are used instead of computed
            ones, because the capture is of this checkpoint.
    """

    def __init__(
        self,
        tensors: RouterTensors,
        index: WeightIndex,
        captured: CapturedRouter | None,
        architecture: Architecture,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.captured, self.architecture, self.tensors = captured, architecture, tensors
        experts = architecture.experts_in(tensors.layer)
        rows = architecture.rows_in(tensors.layer)
        weight = index.read(tensors.weight)
        if weight.shape[0] != rows and weight.shape[1] == rows:
            weight = weight.T  # some families save it transposed
        self.experts = experts or weight.shape[0]

        def rows_of(values: np.ndarray) -> torch.Tensor:
            kept = np.ascontiguousarray(values[: self.experts], dtype=np.float32)
            return torch.from_numpy(kept).to(device)

        self.weight = nn.Parameter(rows_of(weight), requires_grad=False)
        self.bias: torch.Tensor | None = None
        self.selection_bias: torch.Tensor | None = None
        if tensors.bias is not None:
            self.bias = rows_of(index.read(tensors.bias).reshape(-1))
        if tensors.selection_bias is not None:
            self.selection_bias = rows_of(index.read(tensors.selection_bias).reshape(-1))
        self.top_k = architecture.top_k_in(tensors.layer)
        self.captured_outputs = False

    @property
    def router(self) -> Router:
        """This router for the replay, under its path in the model."""
        path = self.captured.path if self.captured else self.tensors.module
        return Router(
            layer=self.tensors.layer or 0, path=path, module=self, linear=self, parent=self,
            experts=self.experts, top_k=self.top_k, weight_ED=self.weight, bias_E=self.bias,
            selection_bias_E=self.selection_bias, choice_scoring=self.architecture.scoring,
        )  # fmt: skip

    def take(self, kind: str, rows_N: np.ndarray) -> torch.Tensor | None:
        """Captured rows of a kind ("inputs", "logits", ...); None if it was not captured."""
        column = self.captured.columns.get(kind) if self.captured else None
        return None if column is None else torch.from_numpy(column.take(rows_N))

    def product(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Logits computed from inputs: weight × input, plus the bias."""
        return F.linear(x_ND, self.weight, self.bias)

    def forward(self, x_ND: torch.Tensor, rows_N: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Logits (N, E), combine weights (N, K) and selected experts (N, K) of captured rows."""
        logits = self.take("logits", rows_N) if self.captured_outputs else None
        logits_NE = self.product(x_ND) if logits is None else logits.to(x_ND.device)
        selected = self.take("selected", rows_N) if self.captured_outputs else None
        weights = self.take("weights", rows_N) if selected is not None else None
        if selected is not None:
            self._check_choice(selected, weights)
        selected_NK = self._select(logits_NE) if selected is None else selected
        selected_NK = selected_NK.to(x_ND.device)
        if weights is None:
            weights = self._scores(logits_NE).gather(1, selected_NK.clamp_min(0))
        if logits is not None and self.captured is not None:  # exact: they were saved in this dtype
            logits_NE = logits_NE.to(dtype_of(self.captured.columns["logits"]))
        return logits_NE, weights.to(x_ND.device), selected_NK

    def _check_choice(self, selected_NK: torch.Tensor, weights: torch.Tensor | None) -> None:
        fits = weights is None or weights.shape == selected_NK.shape
        if not fits or int(selected_NK.min()) < -1 or int(selected_NK.max()) >= self.experts:
            raise ProbeError(
                f"the captured choices of {self.router.path} are not of its experts",
                found=f"experts {int(selected_NK.min())} to {int(selected_NK.max())} of "
                f"{self.experts}" if fits else "another number of weights",
                hint="capture at a checkpoint of the same architecture",
            )  # fmt: skip

    def _scores(self, logits_NE: torch.Tensor) -> torch.Tensor:
        return find_scoring(self.architecture.scoring or "sigmoid").tensor_score(logits_NE)

    def _select(self, logits_NE: torch.Tensor) -> torch.Tensor:
        """The experts that the architecture's selection rule selects, shape (N, K)."""
        selection = self.architecture.selection
        assert self.top_k is not None
        bias = self.selection_bias
        rule = SelectionRule(
            self.top_k, self.architecture.scoring or "",
            None if bias is None else bias.double().cpu().numpy(),
            selection.groups, selection.group_score or "top2", selection.bias_on,
        )  # fmt: skip
        mask_NE = rule.select(rule.score(logits_NE.double().cpu().numpy()))
        return torch.from_numpy(np.nonzero(mask_NE)[1].reshape(len(mask_NE), self.top_k))


class RoutersAlone(ModelAdapter):
    """All routers of a checkpoint as one module, whose input is numbers of captured rows."""

    no_loss = f"{NO_LOSS}: use --fisher categorical"
    recorded = True

    def __init__(self, routers: Sequence[LoneRouter], notes: Sequence[str]) -> None:
        super().__init__()
        self.lone = nn.ModuleList(routers)
        self.routers, self.notes = tuple(routers), list(notes)

    @property
    def body(self) -> None:
        """See `ModelForm`: there are no experts."""
        return None

    def find_routers(self) -> list[Router]:
        """See `ModelForm`."""
        return [lone.router for lone in self.routers]

    def find_experts(
        self, routers: list[Router], inputs: Inputs
    ) -> Mapping[str, ExpertBlock | None]:
        """See `ModelForm`: every block has a problem, because no expert can be run.

        Raises:
            UnsupportedArchitectureError: experts of this architecture do not get the same input as
                their router, so captured router inputs say nothing about them.
        """
        architecture = self.routers[0].architecture
        if architecture.expert_input_differs is not None:
            raise UnsupportedArchitectureError(
                f"what experts of {architecture.text_type} are given is not their router's input",
                found=architecture.expert_input_differs,
                hint="measure the model itself, without --captures",
            )
        note = SAME_INPUT if architecture.known else ASSUMED_INPUT
        self.notes = [n for n in self.notes if n != note] + [note]
        return {r.path: ExpertBlock(r, r.module, "list", r.experts, NO_EXPERTS) for r in routers}

    def prepare(self, routers: list[Router], inputs: Inputs) -> None:
        """See `ModelForm`: nothing to do, because rows do not influence each other."""

    @torch.no_grad()
    def forward(self, rows: torch.Tensor, use_cache: bool = False) -> Any:
        """Call every router on its captured inputs.

        Args:
            rows: numbers of captured rows, any shape.
            use_cache: ignored.
        """
        rows_N = rows.reshape(-1).cpu().numpy()
        for lone in self.routers:
            x_ND = lone.take("inputs", rows_N)
            if x_ND is not None:
                lone(x_ND.to(lone.weight.device), rows_N)
        return SimpleNamespace(logits=None)


def dtype_of(column: Column) -> torch.dtype:
    """The dtype in which a column of floats was saved."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(column.dtype, torch.float32)
