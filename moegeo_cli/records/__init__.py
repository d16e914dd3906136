"""Records: the results of moegeo as data, shared by store, verdict and reports.

A record is a frozen dataclass of plain Python values, so reading a stored run needs neither torch
nor numpy. The fields carry their descriptions, bounds and allowed words (`fields`); the JSON
schemas are derived from them (`schema`). `to_dict` gives the JSON form, `from_dict` reads it back.
"""

from __future__ import annotations

from moegeo_cli.records.convert import from_dict, to_dict
from moegeo_cli.records.metric import NOT_FINITE, Coverage, Metric, Metrics, layer_name
from moegeo_cli.records.run import CheckpointRecord, LayerRecord, RunRecord
from moegeo_cli.records.verdict import (
    Check,
    ConfigKey,
    Evidence,
    Finding,
    Intervention,
    Threshold,
    Verdict,
)

__all__ = [
    "NOT_FINITE", "Check", "CheckpointRecord", "ConfigKey", "Coverage", "Evidence", "Finding",
    "Intervention", "LayerRecord", "Metric", "Metrics", "RunRecord", "Threshold", "Verdict",
    "from_dict", "layer_name", "to_dict",
]  # fmt: skip
