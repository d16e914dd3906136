"""The committed results: what the product ships follows from them, byte for byte."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.evidence.regeneration import calibration_text, recoveries_text
from benchmarks.evidence.report import BLOCKS, PAGE, fill, write_report
from benchmarks.evidence.restarts import choose_flagged, commonest_kinds
from benchmarks.evidence.settings import FRACTIONS
from benchmarks.evidence.table import FOLDER, read_runs, read_table
from moegeo_cli.verdict import load_thresholds
from moegeo_cli.verdict.interventions import catalogue, recoveries
from moegeo_cli.verdict.thresholds import FOLDER as DATA

pytestmark = pytest.mark.skipif(
    not (FOLDER / "runs.csv.gz").exists(), reason="the study has not been collected"
)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return read_runs()


def test_the_verdicts_data_are_regenerated_byte_for_byte() -> None:
    assert (DATA / "calibration.toml").read_text() == calibration_text()
    assert (DATA / "recoveries.toml").read_text() == recoveries_text()


def test_the_tables_hold_what_the_protocol_promises(runs: pd.DataFrame) -> None:
    assert len(runs) >= 400
    assert runs["kind"].value_counts().min() >= 8
    assert runs["label_tokens"].min() >= 65_536
    assert runs["seconds"].sum() / 3600 <= 4
    assert runs["seconds"].median() <= 30
    points = read_table("points")
    assert set(points["name"]) == set(runs["name"])
    assert set(np.round(points["fraction"], 3)) == set(FRACTIONS)


def test_limits_come_from_development_bases_alone() -> None:
    """Whatever becomes of the untouched bases, the limits stay; their rates do not."""
    import benchmarks.evidence.regeneration as regeneration

    points = read_table("points")
    own = read_runs()
    turned = own.copy()
    apart = turned["untouched"].astype(bool)
    turned.loc[apart, "failed"] = ~turned.loc[apart, "failed"]
    for column in [c for c in turned.columns if c.startswith("collapsed_")]:
        turned.loc[apart, column] = turned.loc[apart, column].map({True: False, False: True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regeneration, "read_runs", lambda: turned)
        patch.setattr(regeneration, "read_table", lambda name: points)
        other = regeneration.calibration_text()
    assert _limits(other) == _limits((DATA / "calibration.toml").read_text())
    assert other != (DATA / "calibration.toml").read_text()


def _limits(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("value", "quantile"))]


def test_what_was_measured_is_what_the_verdict_reads() -> None:
    limits = load_thresholds()
    calibrated = {n for n, limit in limits.items() if limit.calibrated}
    assert calibrated == {
        "router-collapse", "loss-behind-reference", "loss-diverged", "learning-rate-high",
    }  # fmt: skip
    assert all(limits[n].threshold.false_positive_rate is not None for n in calibrated)
    known = {entry["id"] for entry in catalogue()["intervention"]}
    assert {row["intervention"] for row in recoveries()} <= known
    findings = {f for entry in catalogue()["intervention"] for f in entry["findings"]}
    assert {row["finding"] for row in recoveries()} <= findings


def test_restarts_are_of_the_commonest_kinds_and_distinct_configurations(
    runs: pd.DataFrame,
) -> None:
    from benchmarks.evidence.alarms import first_alarms

    alarms = first_alarms(runs, read_table("points"))
    for kind in commonest_kinds(alarms):
        chosen = [name for name, *_ in choose_flagged(alarms, kind)]
        assert len(set(chosen)) == len(chosen)
        distinct = alarms.loc[alarms["alarm"] == kind, "configuration"].nunique()
        configurations = runs.loc[chosen, "configuration"].nunique()
        assert configurations == min(distinct, len(chosen))


def test_every_block_of_the_page_is_there() -> None:
    page = PAGE.read_text()
    for name in BLOCKS:
        assert f"<!-- begin {name} -->" in page
        assert f"<!-- end {name} -->" in page
    assert fill("a\n<!-- begin x -->\nold\n<!-- end x -->\nb", "x", "new") == (
        "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb"
    )


@pytest.mark.slow
def test_the_page_is_what_the_tables_say() -> None:
    assert write_report(check=True) == 0


def test_findings_in_the_table_are_of_the_product() -> None:
    from moegeo_cli.explanations.findings import definitions

    found = {name for entry in read_table("points")["findings"] for name in json.loads(entry)}
    assert found <= set(definitions())
