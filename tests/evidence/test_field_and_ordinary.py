"""Published loads and ordinary trainings: what the verdict says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.evidence.strict import count_strict
from benchmarks.evidence.table import read_runs
from benchmarks.field.loads import SHIPPED, judge_sets, read_loads
from benchmarks.field.regeneration import PATH, known_loads_text
from benchmarks.ordinary import report
from benchmarks.ordinary.outcomes import Outcome, judge_all
from benchmarks.ordinary.plan import MISTAKES, plan_runs
from moegeo_cli.errors import UsageError


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return judge_all()


def test_the_limits_follow_from_the_committed_loads() -> None:
    assert PATH.read_text() == known_loads_text()


def test_no_known_good_model_is_watched_or_failing() -> None:
    sets = judge_sets(read_loads(SHIPPED))
    assert len(sets) == 74
    assert {row["severity"] for row in sets} == {"info"}


def test_loads_of_the_users_own_are_judged(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def row(name: str, breadth: str, share: np.ndarray, tokens: int) -> dict[str, object]:
        counts = generator.multinomial(tokens * 2, share / share.sum())
        about = {"model": name, "experts": len(share), "top_k": 2, "layer": 0, "text": "t"}
        joined = ";".join(map(str, counts))
        return {**about, "breadth": breadth, "tokens": tokens, "counts": joined}

    even, two = np.ones(16), np.array([1.0, 1.0, *[1e-4] * 14])
    few = np.array([1.0] * 4 + [0.02] * 12)
    table = pd.DataFrame([
        row("even", "mixture", even, 50_000), row("constant", "mixture", two, 50_000),
        row("constant-narrow", "narrow", two, 50_000), row("few", "mixture", few, 50_000),
        row("tiny", "tiny", two, 20),
    ])  # fmt: skip
    path = tmp_path / "loads.csv"
    table.to_csv(path, index=False)
    found = {r["model"]: r["severity"] for r in judge_sets(read_loads(path))}
    assert found == {"even": "info", "constant": "failing", "constant-narrow": "watch",
                     "few": "watch", "tiny": "info"}  # fmt: skip
    path.write_text("model,experts\nx,8\n")
    with pytest.raises(UsageError, match="lacks columns"):
        read_loads(path)
    table.assign(counts="1;2").to_csv(path, index=False)
    with pytest.raises(UsageError, match="line 2 is no load"):
        read_loads(path)


def test_the_plan_is_balanced_between_what_was_looked_at_and_held_back() -> None:
    runs = plan_runs()
    good = [r for r in runs if r.mistake is None]
    assert len(good) == len(runs) - len(good) == 24
    assert sum(r.held_back for r in runs) == 24
    assert {r.mistake for r in runs if r.mistake} == set(MISTAKES)


def test_good_runs_are_left_alone_after_their_first_fifth(outcomes: list[Outcome]) -> None:
    saves = [o.verdicts[i] for o in outcomes if o.run.mistake is None for i in o.after]
    assert len(saves) == 24 * 8
    assert saves.count("failing") == 0
    assert saves.count("watch") <= 0.05 * len(saves)


def test_mistakes_that_end_worse_are_found_with_their_cause(outcomes: list[Outcome]) -> None:
    worse = [o for o in outcomes if o.worse]
    assert len(worse) == 11
    assert sum(report._named(o) is not None for o in worse) >= 0.9 * len(worse)
    once = [o for o in worse if o.run.mistake == "spike"]
    assert all(o.first() == o.shows_at + 100 for o in once), "the save after the spike"


def test_the_page_and_the_table_are_as_the_command_writes_them() -> None:
    assert report.write_report(check=True) == 0


def test_the_strictest_reading_of_collapse_does_not_carry_failing() -> None:
    assert count_strict(read_runs()) == (6, 18), "as docs/concepts/verdict.md says"
