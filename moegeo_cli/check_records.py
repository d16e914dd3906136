"""What `moegeo check` found in the files, as frozen records: its JSON payload.

Read back with `records.from_dict`. Nothing here comes from a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.records import Coverage, Intervention, Metrics, Verdict

FORMAT_NAME = "moegeo.check"
# 1: first version.
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class CheckedLayer:
    """One router and its experts, from the files.

    `layer` is the index of the decoder layer, null where names tell none; `router` the path of its
    module on disk. `router_digest` and `bias_digest` are of the stored bytes. The per-expert arrays
    have length E; an entry is null where a value is not finite or could not be read, and the arrays
    are null where nothing was read. `masked` are experts that a row or a bias switches off.
    `reasons` say what is not there.
    """

    layer: int | None
    router: str
    experts: int
    top_k: int | None
    metrics: Metrics
    router_digest: str
    bias_digest: str | None = None
    row_norms: tuple[float | None, ...] | None = None
    selection_bias: tuple[float | None, ...] | None = None
    expert_norms: tuple[float | None, ...] | None = None
    masked: tuple[int, ...] = ()
    identical: tuple[tuple[int, ...], ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckedCheckpoint:
    """One checkpoint. `metrics` are over its routers; `bytes_read` is what was read of its files.

    `coverage` counts routers whose values could be read. `scheme` names forms of quantisation.
    """

    step: int | None
    path: str  # relative to the run
    fingerprint: str
    coverage: Coverage
    metrics: Metrics
    layers: tuple[CheckedLayer, ...]
    verdict: Verdict | None = None
    bytes_read: int = 0
    scheme: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """A checkpoint or a run, checked by its files alone: the JSON payload of `moegeo check`.

    `run` holds name, layout, model_type, framework, experts, top_k, scoring, checkpoints_found,
    skipped (checkpoints left out, with reasons) and notes. `settings.quick` says whether routers,
    biases and norms alone were read.
    """

    status: str  # "complete", or "partial" where a checkpoint or a router was left out
    versions: Mapping[str, str]
    run: Mapping[str, Any]
    settings: Mapping[str, Any]
    checkpoints: tuple[CheckedCheckpoint, ...]
    verdict: Verdict | None = None
    interventions: tuple[Intervention, ...] = ()

    @property
    def newest(self) -> CheckedCheckpoint:
        """The newest checkpoint: the one that the run is judged by."""
        return self.checkpoints[-1]
