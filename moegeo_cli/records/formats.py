"""The JSON formats: their names, their versions and the records that they hold."""

from __future__ import annotations

from typing import TypeAlias

from moegeo_cli.records.check import CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.experts import ExpertsRecord
from moegeo_cli.records.routing import RoutingRecord
from moegeo_cli.records.run import RunRecord

AnyRecord: TypeAlias = RunRecord | ComparisonRecord | ExpertsRecord | RoutingRecord | CheckRecord
RECORDS: dict[str, type[AnyRecord]] = {
    "moegeo.run": RunRecord,
    "moegeo.compare": ComparisonRecord,
    "moegeo.experts": ExpertsRecord,
    "moegeo.routing": RoutingRecord,
    "moegeo.check": CheckRecord,
}
NAMES: dict[type, str] = {record: name for name, record in RECORDS.items()}
# Raised where a key changes its meaning; keys may be added within a version. All: 1, the first.
VERSIONS: dict[str, int] = dict.fromkeys(RECORDS, 1)
