"""JSON: what is written reads back, fits its schema, and says what is wrong when it does not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from moegeo_cli.errors import FormatError
from moegeo_cli.records import RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.formats import VERSION
from moegeo_cli.reports import read, read_comparison, render, schema


def test_a_run_reads_back_as_it_was(run: RunRecord, single: RunRecord) -> None:
    for record in (run, single):
        text = render(record, "json")
        again = render(read(text), "json")
        assert again == text


def test_a_comparison_reads_back_as_it_was(comparison: ComparisonRecord) -> None:
    text = render(comparison, "json")
    assert render(read_comparison(text), "json") == text


def test_output_holds_to_the_strict_schema(
    run: RunRecord, single: RunRecord, comparison: ComparisonRecord
) -> None:
    for name, record in (("run", run), ("run", single), ("compare", comparison)):
        judge = jsonschema.Draft202012Validator(schema(f"moegeo.{name}", strict=True))
        assert list(judge.iter_errors(json.loads(render(record, "json")))) == []


def test_the_first_key_is_the_format_and_nothing_is_nan(run: RunRecord) -> None:
    text = render(run, "json")
    assert next(iter(json.loads(text))) == "format"
    assert text.isascii()

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    json.loads(text, parse_constant=refuse)


def test_every_metric_says_value_interval_n_unit_and_direction(run: RunRecord) -> None:
    metrics = json.loads(render(run, "json"))["checkpoints"][-1]["layers"][1]["metrics"]
    for metric in metrics.values():
        assert {"value", "ci_low", "ci_high", "n", "unit", "higher_is_better"} <= metric.keys()
        assert metric["value"] is not None or metric["reason"]


def test_a_key_that_came_later_does_not_disturb(run: RunRecord) -> None:
    document = json.loads(render(run, "json"))
    document["new"] = {"anything": 1}
    document["checkpoints"][0]["new"] = 3
    jsonschema.validate(document, schema("moegeo.run"))
    assert render(read(json.dumps(document)), "json") == render(run, "json")


def change(document: Any, *path: Any, to: Any) -> Any:
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return document


@pytest.mark.parametrize(
    ("path", "to", "words"),
    [
        (("format", "version"), VERSION + 1, "newer moegeo"),
        (("format", "version"), "one", "not a number"),
        (("format", "name"), "moegeo.compare", "not a moegeo.run"),
        (("format",), None, "which format"),
        (("checkpoints",), {}, "damaged"),
        (("checkpoints", 0, "layers", 0, "load"), "even", "damaged"),
        (("checkpoints", 0, "loss", "value"), "low", "damaged"),
        (("verdict", "status"), "splendid", "damaged"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[Any, ...], to: Any, words: str, run: RunRecord) -> None:
    document = change(json.loads(render(run, "json")), *path, to=to)
    with pytest.raises(FormatError, match=words):
        read(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"format": NaN}', "[" * 100_000])
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    words = "the file is not (complete )?JSON|this JSON does not say which format it is"
    with pytest.raises(FormatError, match=words):
        read(text)


def test_a_newer_files_error_says_what_to_do(run: RunRecord) -> None:
    document = change(json.loads(render(run, "json")), "format", "version", to=99)
    with pytest.raises(FormatError) as caught:
        read(json.dumps(document))
    assert "99" in (caught.value.found or "")
    assert caught.value.hint == "pip install --upgrade moegeo"
