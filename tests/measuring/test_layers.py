"""A checkpoint's record from its arrays: loads and losses by domain, dead experts, reasons."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.geometry.sums import RoutingSums
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.layers import NO_LOSS, checkpoint_record, estimate_checkpoint
from moegeo_cli.records import CheckpointRecord
from moegeo_cli.settings import Settings
from tests.traces import EXPERTS, LENGTHS, arrays_of, probe_of

DOMAINS = ("code", "prose", "code", "prose", None, "code")
SETTINGS = Settings()


def record_of(
    arrays: CheckpointArrays, domains: tuple[str | None, ...] | None = DOMAINS
) -> CheckpointRecord:
    return checkpoint_record(
        arrays, probe_of(domains=domains), SETTINGS, step=7, path="checkpoint-7",
        fingerprint="f" * 64, progress={"step": 7, "tokens": None, "fraction": 0.5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def arrays() -> CheckpointArrays:
    return arrays_of(1)


def rows_of(name: str) -> list[int]:
    return [s for s, domain in enumerate(DOMAINS) if domain == name]


def test_loads_and_losses_of_domains_are_of_their_sequences(arrays: CheckpointArrays) -> None:
    found = record_of(arrays)
    for name in ("code", "prose"):
        own = rows_of(name)
        for layer, router in zip(found.layers, arrays.routers, strict=True):
            counts = router.sums.dispatch_SE[own].sum(0)
            assert layer.domain_load[name] == pytest.approx(counts / counts.sum())
        assert arrays.loss_S is not None
        loss = arrays.loss_S[own].sum() / arrays.loss_tokens_S[own].sum()
        assert found.domain_loss[name].value == pytest.approx(loss)
    assert set(found.domain_loss) == {"code", "prose"}


def test_one_domain_is_none(arrays: CheckpointArrays) -> None:
    found = record_of(arrays, ("code",) * len(LENGTHS))
    assert found.domain_loss == {}
    assert {str(layer.domain_load) for layer in found.layers} == {"{}"}


def test_the_record_says_where_and_how_far(arrays: CheckpointArrays) -> None:
    found = record_of(arrays)
    assert (found.step, found.path, found.progress["fraction"]) == (7, "checkpoint-7", 0.5)
    assert (found.coverage.routers_found, found.coverage.routers_measured) == (2, 2)
    assert arrays.loss_S is not None
    assert found.loss.value == pytest.approx(arrays.loss_S.sum() / arrays.loss_tokens_S.sum())
    for layer, router in zip(found.layers, arrays.routers, strict=True):
        assert layer.load == pytest.approx(router.sums.load_E)
        assert layer.mean_probability is not None
        assert sum(p for p in layer.mean_probability if p is not None) == pytest.approx(1.0)
        assert layer.state == "ok"


def test_the_loss_has_the_interval_of_sequences_drawn_again(arrays: CheckpointArrays) -> None:
    found = record_of(arrays).loss
    assert arrays.loss_S is not None
    drawn = [
        (counts[arrays.groups_S] @ arrays.loss_S) / (counts[arrays.groups_S] @ arrays.loss_tokens_S)
        for counts in make_draws(arrays.groups_S, SETTINGS.seed).counts_BG
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.ci_low, found.ci_high) == (pytest.approx(low), pytest.approx(high))


def test_a_loss_that_is_null_says_why(arrays: CheckpointArrays) -> None:
    none = np.zeros(len(LENGTHS), dtype=int)
    cases = (
        (dataclasses.replace(arrays, loss_tokens_S=none), NO_LOSS),
        (dataclasses.replace(arrays, loss_tokens_S=none, replay={"no_loss": "images"}), "images"),
        (dataclasses.replace(arrays, loss_S=None),
         "no loss pass was run: the Fisher kind needs none"),
    )  # fmt: skip
    for changed, reason in cases:
        found = estimate_checkpoint(changed, SETTINGS).loss
        assert (found.value, found.reason) == (None, reason)
    assert record_of(dataclasses.replace(arrays, loss_S=None)).domain_loss == {}


def test_a_fisher_that_was_not_measured_is_null_in_every_layer(arrays: CheckpointArrays) -> None:
    kind = ("categorical", "token")
    routers = tuple(dataclasses.replace(r, fishers={kind: r.fishers[kind]}) for r in arrays.routers)
    bare = dataclasses.replace(arrays, routers=routers)
    found = record_of(bare)
    assert found.metrics["heterogeneity"].value is None
    for layer in found.layers:
        assert layer.metrics["heterogeneity"].reason == NO_LOSS
        assert layer.fisher_trace is None
        assert layer.fisher["categorical"]["token"]["heterogeneity"].value is not None


def unused(arrays: CheckpointArrays, scale: int, *experts: int) -> CheckpointArrays:
    """Many more tokens, spread evenly over all experts but these, in every sequence alike."""

    def of(sums: RoutingSums) -> RoutingSums:
        tokens_S = sums.sequence_tokens * scale
        share_E = np.array([float(e not in experts) for e in range(EXPERTS)])
        dispatch_SE = tokens_S[:, None] * sums.top_k * share_E / share_E.sum()
        return dataclasses.replace(
            sums, dispatch_SE=dispatch_SE.astype(np.int32), sequence_tokens=tokens_S
        )

    routers = tuple(dataclasses.replace(r, sums=of(r.sums)) for r in arrays.routers)
    return dataclasses.replace(arrays, routers=routers)


def test_dead_experts_keep_their_numbers_beside_masked_ones(arrays: CheckpointArrays) -> None:
    dead = unused(arrays, 500, 2)
    found = record_of(dead)
    assert [layer.dead for layer in found.layers] == [(2,), (2,)]
    assert [layer.dead_in_all_domains for layer in found.layers] == [(2,), (2,)]
    both = unused(arrays, 500, 1, 2)
    masked = dataclasses.replace(
        both, routers=tuple(dataclasses.replace(r, masked=(1,)) for r in both.routers)
    )
    told = record_of(masked).layers[0]
    assert (told.masked, told.off, told.dead) == ((1,), (1,), (2,))


def test_without_power_nothing_is_said_of_domains(arrays: CheckpointArrays) -> None:
    assert [layer.dead_in_all_domains for layer in record_of(arrays).layers] == [None, None]
    assert record_of(arrays).metrics["dead_experts"].value is None
