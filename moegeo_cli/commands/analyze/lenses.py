"""What further commands measured of a checkpoint, kept with the run's other measurements.

One file a lens, checkpoint, model code, probe and settings: a result takes the place of one that
was measured alike, and of no other; the widest is judged. A file holds what was measured and no
judgement, and not the E × E matrices, which no rule reads.
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

# Where a lens can measure nothing of a checkpoint.
STATE_HINT = "`moegeo analyze` names the state of its routers and experts"


def lens_key(lens: str, fingerprint: str, models: Models) -> str:
    """The beginning of the names under which a lens's records of a checkpoint are stored."""
    parts = {"lens": lens, "fingerprint": fingerprint, "model": models.identity}
    return f"{lens}-{entry_key(parts)}"


def keep_lens(store: Store, lens: str, record: LensRecord, models: Models) -> None:
    """Store a lens's record under the fingerprint of its checkpoint."""
    layers = tuple(dataclasses.replace(layer, matrices={}) for layer in record.layers)
    judged: dict[str, Any] = {"findings": (), "interventions": (), "checks": ()}
    bare = dataclasses.replace(record, layers=layers, **judged)
    alike = entry_key({"settings": dict(record.settings), "probe": record.probe.get("sha256")})
    store.save_json(f"{lens_key(lens, record.fingerprint, models)}-{alike[:12]}", to_dict(bare))


def find_lenses(store: Store, fingerprint: str, models: Models) -> Lenses:
    """Stored records of a checkpoint by lens; for a lens without one, the reason."""
    found: dict[str, LensRecord | str] = {}
    for lens, found_by in lenses().items():
        kind = records()[found_by.format]
        names = store.list_json(lens_key(lens, fingerprint, models))
        measured: list[LensRecord] = []
        for name in names:  # the earliest first: of two that are as wide, the later counts
            try:
                document = store.load_json(name)
                measured += [] if document is None else [from_dict(kind, document)]
            except ValueError:
                continue
        widest = max(reversed(measured), key=_width, default=None)
        found[lens] = widest or (damaged_reason if names else absent_reason)(lens)
    return found


def _width(record: LensRecord) -> tuple[int, int]:
    """How much of a checkpoint a record covers: number of routers, then tokens of the probe."""
    return record.coverage.routers_measured, int(record.probe.get("tokens") or 0)


def describe_run(checkpoint: Checkpoint, architecture: Architecture) -> RunRecord:
    """A checkpoint's framework and training settings, which decide what advice fits it."""
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
    """Notes of a run's report about the lens records that its verdict uses."""
    notes = []
    for lens, record in measured.items():
        if isinstance(record, str):
            notes += [record] if record == damaged_reason(lens) else []
            continue
        coverage, probe = record.coverage, record.probe
        tokens = probe.get("tokens")
        notes.append(
            f"checks of `{command_name(lens)}` rest on its widest run on this checkpoint: "
            f"{coverage.routers_measured} of {coverage.routers_found} routers, probe "
            f"{probe.get('source')}, {'unknown' if tokens is None else f'{tokens:,}'} tokens"
        )
    return notes
