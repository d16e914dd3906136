"""Replays checkpoints of one architecture with one probe, and measures their routers.

Legend: S sequences, N tokens with kept inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.routing.figures import Figures
from moegeo_cli.commands.routing.layers import Domains, MeasuredRouter, measure_router
from moegeo_cli.commands.routing.models import Side, copy_side
from moegeo_cli.commands.routing.rollouts import generated_figures, prompt_tokens
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.commands.routing.tokens import RoutedTokens, gather_routed, kept_rows
from moegeo_cli.commands.routing.trajectory import Stage, snapshot, stage_figures
from moegeo_cli.errors import UsageError
from moegeo_cli.geometry.resample import Draws, group_sequences, make_draws
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.measuring.prepared import PreparedModel, collect_notes
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe
from moegeo_cli.records import Coverage


@dataclass(frozen=True)
class Replayed:
    """A replayed checkpoint: the model, and each router's tokens."""

    prepared: PreparedModel
    routers: list[RoutedTokens]
    coverage: Coverage
    notes: tuple[str, ...]
    batch_size: int | None
    kept: int


class RoutingReplay:
    """Replays checkpoints of one architecture with one probe, and measures their routers.

    Args:
        models: builds the models.
        checkpoint: a checkpoint that gives the architecture.
        probe: the tokenised probe.
        settings: how to measure.
        listener: receives an event for each checkpoint and batch; None for none.

    Raises:
        MoegeoError: the config cannot be read.
    """

    def __init__(
        self,
        models: Models,
        checkpoint: Checkpoint,
        probe: Probe,
        settings: RoutingSettings,
        listener: Listener | None,
    ) -> None:
        self.models, self.probe, self.settings, self.listener = models, probe, settings, listener
        self.architecture = models.describe(checkpoint)
        self.groups_S: np.ndarray = group_sequences(len(probe.sequences), settings.seed)
        self.draws: Draws = make_draws(self.groups_S, settings.seed)
        self.measurer = Measurer(
            self.architecture, checkpoint.config, probe, self.groups_S, settings.replay, models,
            beside=settings.kept_bytes if settings.memory is not None else 0, every_token=True,
        )  # fmt: skip

    def replay(self, checkpoint: Checkpoint) -> Replayed:
        """Load a checkpoint and replay the probe up to its last router.

        Raises:
            UsageError: the checkpoint is of another architecture.
            MoegeoError: an error while loading or replaying.
        """
        architecture = self.models.describe(checkpoint)
        if architecture != self.architecture:
            raise UsageError(
                f"{checkpoint.relative} is of another architecture than the newest checkpoint",
                hint="choose --steps, or --latest",
            )
        self.models.check(checkpoint, architecture)
        if self.listener:
            note = f"{self.probe.tokens:,} tokens"
            self.listener.checkpoint(checkpoint.title, self.probe.tokens, note)
        measurer, settings = self.measurer, self.settings
        prepared = measurer.open(checkpoint)
        rows_N = kept_rows(prepared.asked, self.probe.tokens, settings.seed, settings.kept_bytes)
        plan = measurer.plan(prepared).of_every_token(fishers=(), sample_rows=rows_N)
        outcome = measurer.replay(prepared, plan, self.listener.advance if self.listener else None)
        memory_note = measurer.mode.say_memory(measurer.device)
        if self.listener and memory_note is not None:
            self.listener.note(memory_note)
        skipped = {
            r.path: "left out by --layers" for r in prepared.routers if r not in prepared.asked
        }
        routers = []
        for trace in outcome.traces:
            own = gather_routed(trace, outcome, rows_N, self.probe, self.groups_S, architecture)
            if isinstance(own, str):
                skipped[trace.router.path] = own
            else:
                routers.append(own)
        return Replayed(
            prepared, routers, Coverage(len(prepared.routers), len(routers), skipped),
            tuple(collect_notes(prepared, measurer.mode, outcome, self.probe)), outcome.batch_size,
            len(rows_N),
        )  # fmt: skip

    def stage(
        self, checkpoint: Checkpoint, found: Replayed, final: Sequence[RoutedTokens] | None
    ) -> Stage:
        """The stage of a checkpoint in the trajectory.

        Args:
            checkpoint: the checkpoint.
            found: its replay.
            final: the routers' tokens at the newest checkpoint, for saturation.
        """
        last = {t.router: snapshot(t) for t in final or () if t.logits_TE is not None}
        return Stage(
            checkpoint,
            checkpoint.fingerprint(self.settings.verify_fingerprint),
            found.coverage,
            {t.router: t.layer for t in found.routers},
            {t.router: stage_figures(t, self.draws, last.get(t.router)) for t in found.routers},
        )

    def sides(self, checkpoint: Checkpoint, found: Replayed) -> list[Side]:
        """The data of each router that a comparison with another model needs."""
        source = self.measurer.source(checkpoint)
        return [copy_side(t, found.prepared, source, self.settings.seed) for t in found.routers]

    def measure(
        self, found: Replayed, domains: Domains
    ) -> tuple[list[MeasuredRouter], dict[str, Any], tuple[str, ...]]:
        """Measure every router of a replayed checkpoint.

        Returns:
            The measured routers, facts about generated continuations, and notes.
        """
        settings, listener = self.settings, self.listener
        generated: dict[str, Figures] | str = {}
        generation_facts: dict[str, Any] = {}
        if settings.generate:
            if listener:
                listener.checkpoint("prompts", 0, f"{settings.generate:,} new tokens each")
            generated, generation_facts = generated_figures(
                found.prepared, self.measurer, settings, None
            )
        notes = (f"--generate: {generated}",) if isinstance(generated, str) else ()
        measured = []
        if listener:
            listener.checkpoint("routers", 0, f"measuring {len(found.routers)}")
        for tokens in found.routers:
            own = {} if isinstance(generated, str) else generated.get(tokens.router, {})
            prompt_T = prompt_tokens(tokens, self.probe, self.architecture)
            measured.append(measure_router(tokens, prompt_T, own, domains, self.draws, settings))
        return measured, generation_facts, notes
