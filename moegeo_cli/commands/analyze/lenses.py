"""Stores the results of lenses with the run's other measurements, and finds them again.

There is one file for each combination of lens, checkpoint, model code, probe and settings. A new
result replaces only the result of the same combination. The verdict uses the result that covers
most. A file holds no judgement, and no E × E matrices, because no rule reads them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.models.given import Models
from moegeo_cli.records import RunRecord, from_dict, to_dict
from moegeo_cli.records.facts import RunFacts
from moegeo_cli.records.lenses import (
    Lenses,
    LensRecord,
    absent_reason,
    command_name,
    damaged_reason,
)
from moegeo_cli.registry import lenses, records
from moegeo_cli.store.cache import Store, entry_key

# Hint for a checkpoint of which a lens can measure nothing.
STATE_HINT = "`moegeo analyze` names the state of its routers and experts"


def lens_key(lens: str, fingerprint: str, models: Models) -> str:
    """The prefix of the names under which a lens's records of a checkpoint are stored."""
    parts = {"lens": lens, "fingerprint": fingerprint, "model": models.identity}
    return f"{lens}-{entry_key(parts)}"


def keep_lens(store: Store, lens: str, record: LensRecord, models: Models) -> None:
    """Store a lens's record under the fingerprint of its checkpoint."""
    layers = tuple(dataclasses.replace(layer, matrices={}) for layer in record.layers)
    no_judgement: dict[str, Any] = {"findings": (), "interventions": (), "checks": ()}
    measured = dataclasses.replace(record, layers=layers, **no_judgement)
    suffix = entry_key({"settings": dict(record.settings), "probe": record.probe.get("sha256")})
    name = f"{lens_key(lens, record.fingerprint, models)}-{suffix[:12]}"
    store.save_json(name, to_dict(measured))


def find_lenses(store: Store, fingerprint: str, models: Models) -> Lenses:
    """For each lens, the stored record that covers most of a checkpoint, or why there is none."""
    found: dict[str, LensRecord | str] = {}
    for lens, command_of_lens in lenses().items():
        kind = records()[command_of_lens.format]
        names = store.list_json(lens_key(lens, fingerprint, models))
        measured: list[LensRecord] = []
        for name in names:  # oldest first: if two records cover the same, the later one is used
            try:
                document = store.load_json(name)
                measured += [] if document is None else [from_dict(kind, document)]
            except ValueError:
                continue
        widest = max(reversed(measured), key=_width, default=None)
        found[lens] = widest or (damaged_reason if names else absent_reason)(lens)
    return found


def _width(record: LensRecord) -> tuple[int, int]:
    """How much of a checkpoint a record covers: number of routers, then of probe tokens."""
    return record.coverage.routers_measured, int(record.probe.get("tokens") or 0)


def describe_run(checkpoint: Checkpoint, architecture: Architecture) -> RunRecord:
    """A record with only the facts that choose advice: framework and training settings."""
    trained = checkpoint.training
    about: RunFacts = {
        "framework": trained.framework,
        "model_type": architecture.model_type,
        "scoring": architecture.scoring,
        "training": dict(trained.settings),
        "log": [dict(entry) for entry in trained.log],
    }
    return RunRecord.of_facts(about)


def lens_notes(measured: Lenses) -> list[str]:
    """Notes for a run's report about the lens records that its verdict uses."""
    notes = []
    for lens, record in measured.items():
        if isinstance(record, str):
            notes += [record] if record == damaged_reason(lens) else []
            continue
        coverage, probe = record.coverage, record.probe
        tokens = probe.get("tokens")
        notes.append(
            f"checks of `{command_name(lens)}` use its stored result that covers most: "
            f"{coverage.routers_measured} of {coverage.routers_found} routers, probe "
            f"{probe.get('source')}, {'unknown' if tokens is None else f'{tokens:,}'} tokens"
        )
    return notes
