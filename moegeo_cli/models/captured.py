"""`CapturedModels`: routers read from the files, fed with captured inputs.

Captured routers are matched to those of the files. Notes say whether the capture is of the same
checkpoint: if it is not, its inputs are an approximation.

Legend: N rows, D router input width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.captures.rows import CapturedRouter, Captures
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.nesting import step_folder
from moegeo_cli.checkpoints.routers import RouterTensors
from moegeo_cli.checkpoints.step_names import parse_step
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import ProbeError, UnsupportedArchitectureError, UsageError
from moegeo_cli.models.adapting import trace_config
from moegeo_cli.models.alone import LoneRouter, RoutersAlone, dtype_of
from moegeo_cli.models.sources import ReplayMode
from moegeo_cli.replay.reading import RouterCall, verify_call

NO_ROWS = np.zeros(0, dtype=np.int64)
SAMPLE_ROWS = 512  # captured logits that decide whether a capture is of this checkpoint


class CapturedModels:
    """Loads the routers of one checkpoint after another; see `ModelSource`.

    Args:
        captures: the capture.
        architecture: scoring and selection rule of the routers.
        find: finds the routers among a checkpoint's tensors.
        device: device of the weights and the computation.
    """

    mode = ReplayMode(form="captured", unplanned="only routers and captured inputs are in memory")

    def __init__(
        self,
        captures: Captures,
        architecture: Architecture,
        find: Any,
        device: torch.device,
    ) -> None:
        self.captures, self.architecture, self.find = captures, architecture, find
        self.device, self.dtype = device, torch.float32

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The routers in a checkpoint's files, with the captured columns of each.

        Raises:
            ProbeError: none of the routers was captured, or captured columns have another width.
            UnsupportedArchitectureError: the selection rule of these routers is not known, and
                selected experts were not captured.
        """
        index = checkpoint.weights
        index.resolve(None if checkpoint.own else partial(trace_config, checkpoint))
        tensors = self.find(index)
        matched = _match(tensors, self.captures.routers)
        lone = [
            LoneRouter(t, index, matched.get(t.weight), self.architecture, self.device)
            for t in tensors
        ]
        notes = [*self.captures.notes]
        known = [router for router in lone if router.captured]
        if not known:
            raise ProbeError(
                f"{self.captures.name} holds inputs of none of the checkpoint's routers",
                found=f"captured: {', '.join(list(self.captures.routers)[:3])}; in the files: "
                f"{', '.join(t.module for t in tensors[:3])}",
                hint="capture all routers of this model",
            )
        _check_widths(known)
        own, words = self._provenance(checkpoint, known)
        for router in known:
            router.captured_outputs = own
        notes.insert(0, words)
        self._check_rule(known, own=own)
        notes.append(_describe_outputs(known, own=own))
        lacking = [router.tensors.module for router in lone if not router.captured]
        if lacking:
            notes.append(f"no inputs were captured of {', '.join(lacking[:4])}")
        unused = len(self.captures.routers) - len(known)
        if unused:
            notes.append(f"{unused} captured routers are not in the checkpoint's files")
        return RoutersAlone(lone, notes).eval()

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`; always refused: inputs of a trained model do not fit a fresh one."""
        raise UsageError(
            "--baseline init does not go with --captures: a fresh initialisation has no captured "
            "router inputs",
            found="--baseline init with --captures",
            hint="use --baseline STEP, PATH or none",
        )

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: weights always are in memory."""
        return contextlib.nullcontext()

    def _provenance(
        self, checkpoint: Checkpoint, routers: Sequence[LoneRouter]
    ) -> tuple[bool, str]:
        """Whether the capture is of this checkpoint, and the note that says so."""
        fingerprint, captured_step = self.captures.fingerprint, self.captures.step
        if fingerprint is not None:
            own = checkpoint.fingerprint() == fingerprint
        elif captured_step is not None and (step := _step_of(checkpoint)) is not None:
            own = step == captured_step
        else:
            return _judge_logits(routers)
        if own:
            return True, "router inputs alone, captured at this checkpoint: no model was run"
        at = "another checkpoint" if captured_step is None else f"step {captured_step}"
        return False, f"an approximation: the router inputs were captured at {at}, not here"

    def _check_rule(self, routers: Sequence[LoneRouter], *, own: bool) -> None:
        """Check that the selection rule is known, if selected experts must be computed."""
        needs = [r for r in routers if not (own and r.take("selected", NO_ROWS) is not None)]
        hashing = [r for r in needs if r.tensors.layer in self.architecture.hash_layers]
        if not needs:
            return
        problem = self.architecture.choice_differs
        if hashing:
            problem = f"layer {hashing[0].tensors.layer} chooses by the token's id"
        elif problem is None and any(router.top_k is None for router in needs):
            problem = "how many experts a token chooses is not known"
        if problem is not None:
            raise UnsupportedArchitectureError(
                f"what routers of {self.architecture.model_type} choose cannot be computed: "
                f"{problem}",
                hint="capture the choices as well, with capture_routers at this checkpoint; "
                "--top-k where K alone is missing",
            )


def _match(
    tensors: Sequence[RouterTensors], captured: Mapping[str, CapturedRouter]
) -> dict[str, CapturedRouter]:
    """Name of a weight -> captured router, by equal paths, else by layer and most similar path."""
    by_path = {unwrap_name(path): router for path, router in captured.items()}
    found = {t.weight: by_path[unwrap_name(t.module)] for t in tensors
             if unwrap_name(t.module) in by_path}  # fmt: skip
    taken = {router.path for router in found.values()}
    pairs = sorted(
        (-_shared_parts(t.module, router.path), t.weight, router.path)
        for t in tensors for router in captured.values()
        if t.weight not in found and router.path not in taken and t.layer == router.layer
    )  # fmt: skip
    for _, weight, path in pairs:
        if weight not in found and path not in taken:
            found[weight] = captured[path]
            taken.add(path)
    return found


def _shared_parts(one: str, other: str) -> int:
    """Number of parts that two module paths have in common."""
    return len(set(one.split(".")) & set(other.split(".")))


def _check_widths(routers: Sequence[LoneRouter]) -> None:
    """Check that captured inputs and logits have the widths of the routers' weights."""
    for router in routers:
        assert router.captured is not None
        columns, width = router.captured.columns, router.weight.shape[1]
        wanted = {"inputs": width, "logits": router.experts}
        for kind, size in wanted.items():
            if kind in columns and columns[kind].width != size:
                raise ProbeError(
                    f"the captured {kind} of {router.captured.path} do not fit the checkpoint",
                    found=f"{columns[kind].width} wide; the router's weight is "
                    f"{router.experts} × {width}",
                    hint="capture at a checkpoint of the same architecture",
                )


def _judge_logits(routers: Sequence[LoneRouter]) -> tuple[bool, str]:
    """`_provenance` of a capture without a checkpoint: compare its logits with weight × input."""
    known = [r for r in routers if r.captured and "logits" in r.captured.columns]
    if not known:
        return False, "the capture names no checkpoint: an approximation, unless it is of this one"
    agree = []
    for router in known:
        assert router.captured is not None
        column = router.captured.columns["logits"]
        rows_N = np.arange(min(SAMPLE_ROWS, column.rows))
        x_ND, logits = router.take("inputs", rows_N), router.take("logits", rows_N)
        assert x_ND is not None
        assert logits is not None
        logits = logits.to(dtype_of(column))
        call = RouterCall(x_ND.to(router.weight.device), logits.to(router.weight.device),
                          logits, logits)  # fmt: skip
        agree.append(verify_call(router.router, call) is None)
    if any(agree):
        return (
            True,
            "router inputs alone: no model was run; the captured logits are these routers' own",
        )
    return False, "an approximation: the captured logits are those of another checkpoint's routers"


def _describe_outputs(routers: Sequence[LoneRouter], *, own: bool) -> str:
    """The note on which logits and selected experts were captured, and which are computed."""
    kinds = [set(r.captured.columns) if own and r.captured else set() for r in routers]
    logits = sum("logits" in k for k in kinds)
    chosen = sum("selected" in k for k in kinds)
    count = len(routers)
    words = [
        f"logits: {logits} of {count} routers as captured, each checked against weight × input"
        if logits
        else "logits: recomputed as weight × input"
    ]
    words.append(
        f"choices: {chosen} of {count} as captured" if chosen
        else "choices: computed by the architecture's rule, not observed"
    )  # fmt: skip
    return "; ".join(words)


def _step_of(checkpoint: Checkpoint) -> int | None:
    """The training step of a checkpoint, by its folder's name or its trainer state."""
    step = parse_step(step_folder(checkpoint.path).name)
    stated = (checkpoint.trainer_state or {}).get("global_step") if step is None else None
    return stated if type(stated) is int else step
