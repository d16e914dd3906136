"""What may be compared, and which of two runs is healthier."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.commands.compare.measure import compare_runs, pair_losses
from moegeo_cli.errors import ComparisonError
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.records import RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.settings import Settings
from tests.traces import architecture_of, measured_of
from tests.verdict.conftest import run_of, verdict_of

SETTINGS = Settings()


class Run:
    """A measured run: the parts of an analysis that a comparison asks for."""

    def __init__(
        self, *seeds: int, steps: tuple[int | None, ...] = (), sha256: str = "a" * 64
    ) -> None:
        measured = [
            measured_of(seed, step=step)
            for seed, step in zip(
                seeds, steps or range(100, 100 + 50 * len(seeds), 50), strict=True
            )
        ]
        self.by_path = {m.record.path: m for m in measured}
        self.record = run_of(*(m.record for m in measured), name="run", probe={"sha256": sha256})
        self.measurement = SimpleNamespace(architecture=architecture_of())

    def measured(self, path: str) -> Any:
        return self.by_path[path]

    def baseline(self) -> Baseline:
        first = next(iter(self.by_path.values()))
        return Baseline([], make_draws(first.arrays.groups_S), "none")

    def judged(self, routing: str = "healthy") -> RunRecord:
        verdict = dataclasses.replace(verdict_of(self.record), routing=routing)
        return dataclasses.replace(self.record, verdict=verdict)


def compare(
    a: Run, b: Run, words: tuple[str, str] = ("healthy", "healthy"), **options: Any
) -> ComparisonRecord:
    judged = (a.judged(words[0]), b.judged(words[1]))
    return compare_runs(
        a, b, judged, SETTINGS, **{"by": None, "force": False, "shared": lambda *_: None} | options,
    )  # fmt: skip


def test_other_probes_are_refused_and_forced_without_intervals() -> None:
    a, b = Run(1), Run(2, sha256="b" * 64)
    with pytest.raises(ComparisonError, match="not measured with the same probe") as error:
        compare(a, b)
    assert error.value.found == f"{'a' * 12} against {'b' * 12}"
    found = compare(a, b, force=True)
    assert f"probe: {'a' * 12} against {'b' * 12}" in found.notes
    loss = found.pairs[0].differences["loss"].difference
    assert (loss.ci_low, loss.reason) == (None, "not paired: the probes differ")
    assert found.healthier is None
    assert found.reason.endswith("the loss difference has no interval: no difference shown")


def test_other_settings_are_refused_by_name() -> None:
    a, b = Run(1), Run(2)
    b.record = dataclasses.replace(b.record, settings={**b.record.settings, "layers": [0]})
    with pytest.raises(ComparisonError, match="not measured with the same layers") as error:
        compare(a, b)
    assert error.value.found == "None against [0]"


def test_the_better_routing_decides_before_the_loss() -> None:
    a, b = Run(1), Run(2)
    for words, side in ((("failing", "watch"), "b"), (("healthy", "watch"), "a")):
        found = compare(a, b, words)
        assert found.healthier == side
        better, worse = (words[0], words[1]) if side == "a" else (words[1], words[0])
        assert found.reason.startswith(f"its routing is {better}, the other's {worse}")
        gap = found.pairs[-1].differences["collapse_worst"]
        assert f"{gap.a.value:.3f} in A, {gap.b.value:.3f} in B" in found.reason
        assert f"{gap.difference.value:+.3f} [" in found.reason


def with_loss(run: Run, more: float) -> Run:
    """The same with a loss that is higher by so much at every token."""
    for path, one in run.by_path.items():
        arrays = one.arrays
        assert arrays.loss_S is not None
        own = dataclasses.replace(arrays, loss_S=arrays.loss_S + more * arrays.loss_tokens_S)
        run.by_path[path] = dataclasses.replace(one, read=lambda own=own: own)
    return run


@pytest.mark.parametrize(("more", "healthier"), [(0.5, "a"), (-0.5, "b"), (0.0, None)])
def test_of_equal_routing_the_lower_loss_decides(more: float, healthier: str | None) -> None:
    found = compare(Run(1), with_loss(Run(1), more))
    assert found.healthier == healthier
    assert found.reason.startswith("routing is healthy in both")
    said = f"{more:+.4f} nats per token [{more:+.4f}, {more:+.4f}], B minus A"
    assert said in found.reason
    decided = "its loss is lower at the last matched pair"
    assert (decided if more else "the paired loss difference contains 0") in found.reason


def test_routing_that_nobody_could_tell_leaves_it_to_the_loss() -> None:
    found = compare(Run(1), with_loss(Run(1), 0.5), ("inconclusive", "failing"))
    assert (found.healthier, found.reason.split(";")[0]) == ("a", "routing is undecided")


def test_runs_that_never_meet_are_said_to() -> None:
    found = compare(Run(1, steps=(100,)), Run(1, steps=(200,)))
    assert found.pairs == ()
    assert found.healthier is None
    assert found.reason == "routing is healthy in both, and no checkpoints match"
    said = "no checkpoint of one run is within 2% of a checkpoint of the other in step"
    assert said in found.notes
    assert [(u.run, u.progress) for u in found.unmatched] == [("a", 100.0), ("b", 200.0)]


def test_other_choices_are_a_note() -> None:
    a, b = Run(1), Run(2)
    b.measurement.architecture = architecture_of("sigmoid", top_k=3)
    notes = compare(a, b).notes
    assert "chosen experts per token (K): 2 against 3" in notes
    assert "scoring: softmax against sigmoid" in notes


def test_losses_are_paired_with_the_reference_at_the_same_progress() -> None:
    ours = with_loss(Run(1, 2, steps=(100, 500)), 0.25)
    found = pair_losses(ours, Run(1, 2, steps=(100, 900)), SETTINGS)
    assert list(found) == ["checkpoint-100"]
    assert found["checkpoint-100"].value == pytest.approx(0.25)
    other = Run(1, steps=(100,), sha256="b" * 64)
    assert pair_losses(ours, other, SETTINGS) == {}, "another probe"
    lost = Run(1, 2, steps=(None, None))
    assert pair_losses(ours, lost, SETTINGS) == {}, "no progress"
