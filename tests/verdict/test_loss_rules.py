"""The loss: jumps, what is lost, what is never gained, and texts that a model has not learned."""

from __future__ import annotations

import pytest

from tests.verdict.conftest import checkpoint, find, log, metric, run_of, verdict_of

PROBE = {"unigram_loss": 3.4, "domain_unigram_loss": {"code": 3.2, "prose": 3.1}}
CALM = [3.0 - 0.01 * i for i in range(20)]


def test_loss_behind_a_reference_is_performance_alone() -> None:
    run, other = run_of(), run_of()
    assert verdict_of(run).performance == "undetermined"
    gap = {"checkpoint-100": metric(0.5, 0.1)}
    behind = verdict_of(run, reference=other, paired_losses=gap)
    assert (behind.routing, behind.performance) == ("healthy", "watch")
    # Sure, and yet what runs show that end well: said, and no more.
    near = verdict_of(run, reference=other, paired_losses={"checkpoint-100": metric(0.1, 0.05)})
    assert (near.performance, [f.name for f in near.findings]) == (
        "healthy", ["loss-behind-reference"],
    )  # fmt: skip
    assert "not surely over the limit of 9" in near.findings[0].message
    even = {"checkpoint-100": metric(0.01, 0.1)}
    assert verdict_of(run, reference=other, paired_losses=even).performance == "healthy"
    assert verdict_of(run, reference=other, paired_losses={}).performance == "undetermined"


def test_a_spike_is_named_by_its_onset() -> None:
    assert find(run_of(log=log(*CALM)), "loss-spike") is None
    found = find(run_of(log=log(*CALM, 4.5, 6.0, 2.8)), "loss-spike")
    assert found is not None
    assert "at step 20" in found.message
    assert found.severity == "watch"
    later = run_of(checkpoint(10), log=log(*CALM, 4.5))
    assert find(later, "loss-spike") is None, "a log beyond the checkpoint is its future"


def test_a_loss_that_is_not_finite_fails() -> None:
    run = run_of(log=[{"step": 5, "loss": None, "nonfinite": ["loss"]}])
    verdict = verdict_of(run)
    assert (verdict.performance, verdict.routing) == ("failing", "healthy")


def test_a_training_loss_that_lost_what_it_had_gained_has_diverged() -> None:
    down = [3.4 - 0.07 * i for i in range(20)]  # to 2.07
    lost = find(run_of(log=log(*down, *[2.6] * 10), probe=PROBE), "loss-diverged")
    assert lost is not None
    assert lost.severity == "failing"
    back = run_of(log=log(*down, *[2.6] * 3, *[2.0] * 10), probe=PROBE)
    assert find(back, "loss-diverged") is None, "a spike that came back"
    assert find(run_of(log=log(*down), probe=PROBE), "loss-diverged") is None


def test_a_probe_loss_that_rises_under_a_falling_log_is_another_text() -> None:
    rising = (checkpoint(100, loss=metric(2.0)), checkpoint(200, loss=metric(2.5)))
    alone = find(run_of(*rising, probe=PROBE), "loss-diverged")
    assert alone is not None
    assert alone.severity == "watch"
    told = find(run_of(*rising, log=log(*CALM), probe=PROBE), "loss-diverged")
    assert told is not None
    assert told.severity == "info"
    assert "moved to other text" in told.message


def test_a_loss_that_never_passes_token_frequencies_has_learned_nothing() -> None:
    stuck = log(*[3.6] * 20)
    for fraction, severity in ((0.1, None), (0.3, "failing")):
        run = run_of(checkpoint(100, loss=metric(3.5), fraction=fraction), log=stuck, probe=PROBE)
        found = find(run, "loss-diverged")
        assert (found.severity if found else None) == severity


@pytest.mark.parametrize("logged", [True, False])
def test_a_probe_above_its_token_frequencies_is_unfit(logged: bool) -> None:
    run = run_of(checkpoint(100, loss=metric(5.0)), log=log(*CALM) if logged else [], probe=PROBE)
    found = find(run, "probe-unfit")
    assert found is not None
    assert found.severity == "watch"
    assert ("labels of the training are shifted" in found.message) == logged
    early = run_of(checkpoint(100, loss=metric(5.0), fraction=0.1), probe=PROBE)
    assert find(early, "probe-unfit") is None
    assert find(run_of(checkpoint(0, loss=metric(5.0)), probe=PROBE), "probe-unfit") is None


def test_a_model_of_one_domain_is_told_which_numbers_say_little() -> None:
    domains = {"code": metric(4.0), "prose": metric(2.0)}
    for loss in (3.0, 3.6):
        run = run_of(checkpoint(100, loss=metric(loss), domain_loss=domains), probe=PROBE)
        found = find(run, "probe-unfit")
        assert found is not None
        assert found.severity == "info"
        assert "has not learned the text of code" in found.message
