"""Records read back as they were written, and their schemas are as strict as their types."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from moegeo_cli.errors import FormatError
from moegeo_cli.records import Metric, RunRecord, from_dict, to_dict
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.schema import schema
from moegeo_cli.registry import records
from moegeo_cli.reports.json_report import read

GOLDEN = Path(__file__).parents[1] / "reports" / "golden"
DOCUMENTS: dict[str, Any] = {
    "moegeo.run": json.loads((GOLDEN / "run.json").read_text()),
    "moegeo.compare": json.loads((GOLDEN / "comparison.json").read_text()),
}
LAYER = ("checkpoints", 0, "layers", 0)
METRIC = (*LAYER, "metrics", "fsi")
ABSENT = object()
# Fields of a record that a file of it may lack.
OPTIONAL = {
    "moegeo.experts": {"fingerprint", "findings", "interventions", "checks"},
    "moegeo.inspect": {"inspected", "checkpoints", "skipped"},
}
# Where in a run, and what must not stand there.
DAMAGE = [
    ((*METRIC, "ci_low"), ABSENT),
    ((*METRIC, "value"), None),  # without a reason
    ((*METRIC, "value"), "0.3"),
    ((*METRIC, "value"), True),
    ((*METRIC, "n"), -1),
    ((*METRIC, "n"), 1.5),
    ((*METRIC, "unit"), None),
    ((*LAYER, "load"), "even"),
    ((*LAYER, "load"), [0.5, 1.5]),
    ((*LAYER, "load"), ABSENT),
    ((*LAYER, "state"), "broken"),
    ((*LAYER, "state"), ABSENT),
    ((*LAYER, "dead"), [-1]),
    ((*LAYER, "fisher", "categorical"), []),
    (("checkpoints", 0, "replay"), ABSENT),
    (("checkpoints", 0, "step"), -1),
    (("checkpoints", 0, "progress", "step"), "late"),
    (("baseline", "kind"), "other"),
    (("baseline", "reason"), ABSENT),
    (("dynamics", 0, "metrics", "speed", "value"), "fast"),
    (("dynamics", 0, "geodesic_steps"), [-1]),
    (("dynamics", 0, "from_path"), ABSENT),
    (("interventions", 0, "evidence", "grade"), "certain"),
    (("interventions", 0, "evidence"), {}),
    (("verdict", "findings", 0, "severity"), "dire"),
    (("verdict", "findings", 0, "evidence", 0, "metric"), ABSENT),
    (("verdict", "findings", 0, "threshold", "recall"), 1.2),
    (("verdict", "findings"), ABSENT),
    (("verdict", "status"), "undetermined"),
    (("verdict", "checks", 0, "outcome"), "unsure"),
    (("status",), "done"),
    (("versions", "torch"), 2),
]


def change(document: Any, path: tuple[Any, ...], to: Any) -> Any:
    found = copy.deepcopy(document)
    place = found
    for key in path[:-1]:
        place = place[key]
    if to is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return found


@pytest.mark.parametrize(
    ("path", "to"), DAMAGE, ids=lambda x: "absent" if x is ABSENT else str(x)[-40:]
)
def test_what_a_record_cannot_hold_is_refused_by_schema_and_reader(
    path: tuple[Any, ...], to: Any
) -> None:
    document = change(DOCUMENTS["moegeo.run"], path, to)
    assert not jsonschema.Draft202012Validator(schema("moegeo.run")).is_valid(document)
    with pytest.raises(FormatError, match="damaged"):
        read(json.dumps(document), RunRecord)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("pairs", 0, "differences", "loss", "difference"), ABSENT),
        (("pairs", 0, "step_a"), -1),
        (("run_a", "status"), "splendid"),
        (("matched_by",), "time"),
        (("healthier",), "c"),
    ],
)
def test_what_a_comparison_cannot_hold_is_refused(path: tuple[Any, ...], to: Any) -> None:
    document = change(DOCUMENTS["moegeo.compare"], path, to)
    assert not jsonschema.Draft202012Validator(schema("moegeo.compare")).is_valid(document)
    with pytest.raises(FormatError, match="damaged"):
        read(json.dumps(document), ComparisonRecord)


@pytest.mark.parametrize("name", ["masked", "zero_rows", "experts_identical"])
def test_what_came_later_within_the_version_may_be_absent(name: str) -> None:
    document = change(DOCUMENTS["moegeo.run"], (*LAYER, name), ABSENT)
    jsonschema.validate(document, schema("moegeo.run", strict=True))
    assert read(json.dumps(document), RunRecord).checkpoints[0].layers[0].masked == ()


@pytest.mark.parametrize("name", records())
def test_a_file_has_every_field_of_its_record_that_is_not_marked(name: str) -> None:
    found, strict = schema(name), schema(name, strict=True)
    jsonschema.Draft202012Validator.check_schema(found)
    jsonschema.Draft202012Validator.check_schema(strict)
    assert found["required"][0] == "format"
    marked = ("later", "where_due", "x-", "default")
    assert not any(f'"{word}' in json.dumps(found) for word in marked)
    fields = {f.name for f in dataclasses.fields(records()[name])}
    assert fields | {"format"} == set(found["properties"])
    assert fields - OPTIONAL.get(name, set()) == set(found["required"]) - {"format"}
    assert not any(part.get("additionalProperties") is False for part in found["$defs"].values())
    assert all(part["additionalProperties"] is False for part in strict["$defs"].values())
    assert not strict["additionalProperties"]
    undescribed = [part for part, rule in found["$defs"].items() if not rule.get("description")]
    assert undescribed == []


def test_a_checkpoint_names_all_that_it_always_has() -> None:
    found = schema()["$defs"]
    assert set(found["CheckpointRecord"]["properties"]) - set(
        found["CheckpointRecord"]["required"]
    ) == {"domain_loss"}
    assert set(found["Metric"]["properties"]) - set(found["Metric"]["required"]) == {
        "null_value", "reason", "router",
    }  # fmt: skip
    assert found["Metric"]["properties"]["null_value"]["type"] == "number"
    assert found["RunFacts"]["required"] == []


def test_numbers_and_unknown_keys_survive_as_they_should() -> None:
    metric = from_dict(Metric, {"value": 1, "n": 3, "new": [1]})
    assert metric == Metric(1.0, n=3)
    assert to_dict(metric)["value"] == 1.0
    with pytest.raises(ValueError, match=r"n"):
        from_dict(Metric, {"value": None, "n": "3"})
    for spoilt in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN"):
            to_dict(Metric(spoilt))


def test_names_that_are_no_text_read_back() -> None:
    """Paths of a file system may hold bytes that are no UTF-8: lone surrogates here."""
    kept = {"a\udc80": {"value": 0.5, "reason": "b\udc80"}}
    assert from_dict(dict[str, Metric], kept)["a\udc80"].reason == "b\udc80"
