"""`Measurer`: replays a probe through one checkpoint after another and returns the arrays.

Legend: T real probe positions, S sequences, D router input width, E experts, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import UsageError
from moegeo_cli.fisher.adam import adam_second_moments
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.prepared import PreparedModel, collect_notes, digest, prepare
from moegeo_cli.measuring.provenance import running_versions
from moegeo_cli.measuring.router_arrays import make_router_arrays
from moegeo_cli.measuring.routing_statistic import make_statistic
from moegeo_cli.models.accounting import weight_facts
from moegeo_cli.models.fitting import Request, choose_source
from moegeo_cli.models.given import Models
from moegeo_cli.models.loading import resolve_device, resolve_dtype
from moegeo_cli.models.sources import ModelSource, ReplayMode
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.replay.batches import TOKENS_PER_BATCH
from moegeo_cli.replay.plan import Plan, Replay
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.replay.sampling import sample_rows, sample_size, thin_for_inputs
from moegeo_cli.replay.session import replay
from moegeo_cli.routers.finding import Router
from moegeo_cli.settings import Settings


class Measurer:
    """Measures checkpoints of one architecture with one probe.

    Args:
        architecture: the facts about the routers in the config.
        config: the parsed config.json.
        probe: the tokenised probe.
        groups_S: each sequence's group for resampling.
        settings: how to measure.
        models: which model this is; None for a transformers model.
        ranks: the processes that share the probe; None for a single process.
        beside: bytes that the command holds in addition to a pass.
        every_token: whether the command keeps the logits and choices of every token.
        verified: for a command that compares rewritten copies of the model: number of tokens whose
            output logits it compares.

    Raises:
        ResourceError: the device does not exist.
        UsageError: --memory with a model whose memory is not known.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: dict[str, Any],
        probe: Probe,
        groups_S: np.ndarray,
        settings: Settings,
        models: Models | None = None,
        ranks: Ranks | None = None,
        beside: int = 0,
        every_token: bool = False,
        verified: int = 0,
    ) -> None:
        self.architecture, self.config, self.probe = architecture, config, probe
        self.groups_S, self.settings, self.ranks = groups_S, settings, ranks
        if ranks is not None:
            ranks.share_probe = settings.parallel == "data"
            if not ranks.share_probe and not ranks.whole_process:
                raise UsageError(
                    "--parallel works only on the command line: split models leave threads behind",
                    found=f"parallel={settings.parallel!r} in a Python program",
                    hint="torchrun --nproc-per-node 2 -m moegeo_cli analyze RUN --parallel "
                    f"{settings.parallel}",
                )
        self.beside, self.every_token, self.verified = beside, every_token, verified
        self.device = resolve_device(ranks.device(settings.device) if ranks else settings.device)
        self.dtype = resolve_dtype(settings.dtype, config)
        self._source = (
            None if models is None else models.source(self.device, self.dtype, architecture)
        )
        if self._source is not None:
            self.dtype = self._source.dtype
            if settings.memory is not None:
                raise UsageError(
                    "--memory works only with transformers models: what others need is unknown",
                    found="--memory with a model of your own, or with captures",
                    hint="leave --memory out, and use a smaller --batch-size or --max-tokens",
                )
        self.memory: str | None = None  # a sentence about the memory of the last replay

    def measure(
        self, checkpoint: Checkpoint, progress: Callable[[int], None] | None = None
    ) -> CheckpointArrays:
        """Load a checkpoint's weights and replay the probe.

        Raises: what loading and replaying raise.
        """
        if self.ranks:
            self.ranks.send_order("load", path=str(checkpoint.path))
        return self._measure(partial(self.load, checkpoint), checkpoint, progress)

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """Load a checkpoint's model."""
        return self.source(checkpoint).load(checkpoint)

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """Make a freshly initialised model by a checkpoint's config."""
        return self.source(checkpoint).initialise(checkpoint, seed)

    def source(self, checkpoint: Checkpoint) -> ModelSource:
        """The source of models, chosen by the size of the first checkpoint."""
        if self._source is None:
            self._source = choose_source(
                Request(
                    checkpoint, self.architecture, self.probe, self.groups_S, self.settings,
                    self.device, self.dtype, self.beside, self.every_token, self.verified,
                    self.ranks.world if self.ranks else 1,
                ),
                shared=self.ranks is not None,
            )  # fmt: skip
        source: ModelSource = self._source
        return source

    def measure_initial(
        self, checkpoint: Checkpoint, seed: int, progress: Callable[[int], None] | None = None
    ) -> CheckpointArrays:
        """Measure a fresh initialisation of the checkpoint's own config."""
        if self.ranks:
            self.ranks.send_order("initialise", path=str(checkpoint.path), seed=seed)
        return self._measure(partial(self.initialise, checkpoint, seed), checkpoint, progress)

    def measure_model(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        progress: Callable[[int], None] | None = None,
    ) -> CheckpointArrays:
        """Replay the probe through a model in its current state.

        Args:
            model: the model.
            checkpoint: its checkpoint, for files beside the weights.
            progress: called with the number of tokens that were replayed.

        Raises: what replaying raises.
        """
        return self._measure(lambda: model, checkpoint, progress)

    def replay_share(self, give: Callable[[], nn.Module]) -> None:
        """Replay this rank's share of the probe, for rank 0.

        Raises: what loading and replaying raise, on any rank.
        """
        prepared = self.prepare(give)
        self.replay(prepared, self.plan(prepared))

    def open(self, checkpoint: Checkpoint) -> PreparedModel:
        """Load a checkpoint's model and prepare it for a replay.

        Raises: what loading raises.
        """
        return self.prepare(partial(self.load, checkpoint))

    def prepare(self, give: Callable[[], nn.Module]) -> PreparedModel:
        """Prepare the model that `give` returns for a replay; check that it is equal on all ranks.

        Raises: what `give` and `prepare` raise.
        """

        def make() -> PreparedModel:
            return prepare(give(), self.architecture, self.settings.layers)

        if self.ranks is None:
            return make()
        prepared = self.ranks.together(make)
        self.ranks.require_same("the routers' weights", digest(prepared.routers))
        return prepared

    def plan(self, prepared: PreparedModel) -> Plan:
        """The plan of a pass for `measure`. Other commands change a copy of it.

        Raises: what a user's own model raises when it is tried out.
        """
        prepared.form.prepare(prepared.asked, self.inputs)
        splits = [s.source for s in self.probe.sequences if not isinstance(s, Sample)]
        assert self.architecture.scoring is not None
        sample, input_rows = self._sample(prepared.asked)
        return Plan(
            fishers=self.settings.fishers,
            groups_S=self.groups_S,
            unselected=self.architecture.unselected_gradient,
            renormalised=bool(self.architecture.selection.renormalised),
            scoring=self.architecture.scoring,
            batch_size=1 if prepared.form.alone else self.settings.batch_size,
            batch_tokens=self.mode.batch_tokens,
            mixed_lengths=prepared.form.mixes_lengths,
            splits_S=np.array(splits) if self.architecture.encoder_decoder else None,
            sample_rows=input_rows,
            statistic=partial(
                make_statistic,
                architecture=self.architecture,
                sequences=len(self.probe.sequences),
            ),
            kept_rows=sample,
            seed=self.settings.seed,
        )

    def replay(
        self, prepared: PreparedModel, plan: Plan, progress: Callable[[int], None] | None = None
    ) -> Replay:
        """Replay the probe through a model.

        Args:
            prepared: the model.
            plan: what the pass measures and keeps.
            progress: called with the number of tokens that were replayed.

        Raises: what replaying raises.
        """
        labels = [s.labels for s in self.probe.sequences]
        return replay(
            prepared.model, prepared.asked, self.inputs, labels, plan,
            progress=progress, kind=self.mode.kind, ranks=self.ranks,
        )  # fmt: skip

    @property
    def inputs(self) -> list[np.ndarray] | list[Sample]:
        """The probe's sequences as a replay takes them: token ids, or samples."""
        samples = [s for s in self.probe.sequences if isinstance(s, Sample)]
        ids = [s.input_ids for s in self.probe.sequences if not isinstance(s, Sample)]
        return samples or ids

    def _measure(
        self,
        give: Callable[[], nn.Module],
        checkpoint: Checkpoint,
        progress: Callable[[int], None] | None,
    ) -> CheckpointArrays:
        prepared = self.prepare(give)
        outcome = self.replay(prepared, self.plan(prepared), progress)
        model, routers, asked = prepared.model, prepared.routers, prepared.asked
        mode = self.mode
        self.memory = mode.say_memory(self.device)
        adam = self._adam(model, checkpoint.path, asked)
        sample, input_rows = self._sample(asked)
        measured = []
        for trace, moments in zip(outcome.traces, adam, strict=True):
            measured.append(
                make_router_arrays(
                    outcome, trace, self.architecture, self.groups_S, moments, input_rows,
                    sample, self.settings.seed,
                )
            )  # fmt: skip
            trace.release()  # one by one, so that traces and arrays do not both fill the memory
        skipped = {r.path: "left out by --layers" for r in routers if r not in asked}
        skipped |= {t.router.path: t.problem for t in outcome.traces if t.problem}
        return CheckpointArrays(
            routers=tuple(r for r in measured if r is not None),
            loss_S=outcome.loss_S,
            loss_tokens_S=outcome.loss_tokens_S,
            groups_S=self.groups_S,
            sample_rows=sample,
            input_rows=input_rows,
            routers_found=len(routers),
            not_measured=skipped,
            replay={
                "versions": running_versions(),
                "device": str(self.device.type),
                "dtype": str(self.dtype).removeprefix("torch."),
                "batch_size": outcome.batch_size,
                "batch_tokens": None
                if outcome.batch_size
                else mode.batch_tokens or TOKENS_PER_BATCH,
                "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
                "unselected_gradient": outcome.unselected,
                "memory": mode.describe_memory(),
                "weights": weight_facts(model),
                **({"no_loss": prepared.form.no_loss} if prepared.form.runs_to_end else {}),
                "notes": collect_notes(prepared, mode, outcome, self.probe),
            },
        )

    @property
    def mode(self) -> ReplayMode:
        """How models of this source are replayed."""
        return self._source.mode if self._source is not None else ReplayMode()

    def _sample(self, routers: Sequence[Router]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the probe whose logits and choices are kept, and those with router inputs."""
        slots = self.architecture.top_k or 1
        count = sample_size([(r.experts, r.top_k or slots) for r in routers])
        rows = sample_rows(self.probe.tokens, count, self.settings.seed)
        return rows, thin_for_inputs(rows, [int(r.weight_ED.shape[1]) for r in routers])

    def _adam(
        self, model: nn.Module, path: Path, routers: Sequence[Router]
    ) -> list[np.ndarray | None]:
        """Adam's second moments of each router, if that Fisher kind is measured; else None."""
        if self.settings.fisher != "adam":
            return [None] * len(routers)
        names = {id(p): n for n, p in model.named_parameters()}
        moments = adam_second_moments(
            path / "optimizer.pt", model, [names[id(r.weight_ED)] for r in routers]
        )
        return [m[: r.experts] for m, r in zip(moments, routers, strict=True)]
