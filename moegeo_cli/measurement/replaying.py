"""A probe through a model that is ready: what every command asks of a replay, put together once.

Legend: T probe positions, G groups of sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.measurement.ready import Ready
from moegeo_cli.measurement.settings import Settings
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.replay.plan import Plan, Replay
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.replay.session import replay
from moegeo_cli.replay.sources import Manner
from moegeo_cli.replay.standins import StandIn


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a replay is to leave.

    `fishers` are kinds and units of Fisher sums; without an empirical one the pass ends at the last
    router. `rows` are those of the probe whose router inputs are kept.
    """

    fishers: tuple[tuple[str, str], ...]
    rows: np.ndarray


def replay_probe(
    ready: Ready,
    architecture: Architecture,
    settings: Settings,
    manner: Manner,
    probe: Probe,
    groups_S: np.ndarray,
    wanted: Wanted,
    *,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> Replay:
    """Run a probe through a model.

    Args:
        ready: the model and the routers that are measured.
        architecture: how these choose.
        settings: batch size and seed.
        manner: how the model is replayed.
        probe: the probe.
        groups_S: each sequence's group for resampling.
        wanted: what to keep.
        progress: hears how many tokens were replayed.
        ranks: who shares the probe; None for this process alone.

    Raises: what replaying raises.
    """
    sequences, model = probe.sequences, ready.model
    samples = [s for s in sequences if isinstance(s, Sample)]
    ids = [s.input_ids for s in sequences if not isinstance(s, Sample)]
    own, alone = isinstance(model, StandIn), False
    if isinstance(model, StandIn):
        model.prepare(ready.asked, samples or ids)
        alone = model.alone
    splits = [s.source for s in sequences if not isinstance(s, Sample)]
    assert architecture.scoring is not None
    plan = Plan(
        fishers=wanted.fishers,
        groups_S=groups_S,
        unselected=architecture.unselected_gradient,
        scoring=architecture.scoring,
        batch_size=1 if alone else settings.batch_size,
        batch_tokens=manner.batch_tokens,
        mixed_lengths=not ready.stateful and not own,
        splits_S=np.array(splits) if architecture.encoder_decoder else None,
        sample_rows=wanted.rows,
        seed=settings.seed,
    )
    return replay(
        model, ready.asked, samples or ids, [s.labels for s in sequences], plan,
        progress=progress, kind=manner.kind, ranks=ranks,
    )  # fmt: skip
