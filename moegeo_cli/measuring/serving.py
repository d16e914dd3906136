"""Ranks other than 0: they follow the orders of rank 0 (load, replay) and print nothing.

Rank 0 sends the tokenised probe, so all ranks replay the same one whatever files or tokenizers
their machines have.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture, describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.probes.dataset import Sequence
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.settings import Settings


def start(
    ranks: Ranks,
    architecture: Architecture,
    config: dict[str, Any],
    probe: Probe,
    groups_S: np.ndarray,
    settings: Settings,
    models: Models,
) -> Measurer:
    """Create the measurer on rank 0, and order every other rank to create the same.

    Raises:
        ResourceError: a rank has no device, or its probe differs.
    """
    ranks.send_order(
        "start",
        config=config,
        models=None if models.config is None else str(models.config),
        settings=dataclasses.asdict(settings),
        probe=[
            [s.input_ids.tolist(), None if s.labels is None else s.labels.tolist(), s.domain]
            for s in probe.sequences
            if not isinstance(s, Sample)  # samples are for users' own models, in one process
        ],
    )
    make = partial(Measurer, architecture, config, probe, groups_S, settings, models, ranks)
    measurer = ranks.together(make)
    ranks.require_same("the probe's sequences", probe.sha256)
    return measurer


def serve(ranks: Ranks) -> int:
    """Follow the orders of rank 0 until it is done.

    Returns:
        The exit code that rank 0 sent.

    Raises:
        ResourceError: rank 0 has ended.
    """
    measurer: Measurer | None = None
    given: Path | None = None
    while True:
        order = ranks.next_order()
        if order["order"] == "leave":
            ranks.close()
            return int(order["code"])
        try:
            if order["order"] == "start":
                measurer = _build_measurer(ranks, order)
                given = Models(order["models"]).config
            elif measurer is not None:
                checkpoint = Checkpoint(Path(order["path"]), given_config=given)
                measurer.replay_share(
                    partial(measurer.load, checkpoint)
                    if order["order"] == "load"
                    else partial(measurer.initialise, checkpoint, order["seed"])
                )
        except Exception as error:
            if not ranks.is_shared_error(error):
                raise  # only this rank failed: its end gives the others an error


def _build_measurer(ranks: Ranks, order: dict[str, Any]) -> Measurer:
    """The measurer for an order of rank 0."""

    def make() -> Measurer:
        settings = Settings(**{
            **order["settings"],
            "layers": None if order["settings"]["layers"] is None
            else tuple(order["settings"]["layers"]),
        })  # fmt: skip
        config = order["config"]
        return Measurer(
            describe_architecture(config), config, probe,
            group_sequences(len(probe.sequences), settings.seed), settings,
            Models(order["models"]), ranks,
        )  # fmt: skip

    probe = Probe.of(
        (
            Sequence(
                np.array(ids, dtype=np.int64),
                None if labels is None else np.array(labels, dtype=np.int64),
                domain,
            )
            for ids, labels, domain in order["probe"]
        ),
        "of rank 0",
    )
    measurer = ranks.together(make)
    ranks.require_same("the probe's sequences", probe.sha256)
    return measurer
