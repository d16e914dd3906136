"""`measure_experts` of a tiny model: what is measured, what is left out and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.experts import measure
from moegeo_cli.commands.experts.measure import measure_experts
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe, Sequence
from moegeo_cli.replay.forms import OfTransformers
from tests.tiny_models import build_tiny

IDS = [np.random.default_rng(n).integers(0, 64, 9 + n) for n in range(10)]
SETTINGS: dict[str, Any] = {"rank": 2, "device": "cpu", "jacobian_tokens": 16}


def probe_of(labels: Any = None, domains: tuple[str | None, ...] = (None,)) -> Probe:
    return Probe.of(
        (Sequence(ids, labels, domains[n % len(domains)]) for n, ids in enumerate(IDS)), "drawn"
    )


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        self.told.append((count, noun))

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        self.told.append(name)

    def advance(self, tokens: int) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture
def experts(tiny: Callable[..., Path]) -> Callable[..., ExpertsRecord]:
    def run(probe: Probe | None = None, listener: Any = None, **settings: Any) -> ExpertsRecord:
        checkpoint = Checkpoint(tiny("mixtral"), ".", step=7)
        own = ExpertSettings(**{**SETTINGS, **settings})
        return measure_experts(
            checkpoint, checkpoint.architecture, probe or probe_of(), own, Models(), listener
        )

    return run


def test_the_record_names_what_it_is_of(experts: Callable[..., ExpertsRecord]) -> None:
    listener = Listener()
    record = experts(listener=listener)
    assert (record.status, record.step, record.model_type) == ("complete", 7, "mixtral")
    assert record.coverage.routers_found == record.coverage.routers_measured == 3
    assert [layer.layer for layer in record.layers] == [0, 1, 2]
    assert record.settings["kept_tokens"] == record.settings["max_tokens"] == sum(map(len, IDS))
    assert record.findings == ()
    routers = [layer.router for layer in record.layers]
    assert listener.told == [(4, "part"), "replay", *routers]
    model = build_tiny("mixtral")
    losses = [
        F.cross_entropy(model(torch.from_numpy(i)[None]).logits[0, :-1], torch.from_numpy(i)[1:],
                        reduction="sum").item() for i in IDS
    ]  # fmt: skip
    mean = sum(losses) / sum(len(i) - 1 for i in IDS)
    assert record.loss.value == pytest.approx(mean, rel=1e-5)


def test_layers_that_were_not_asked_for_are_named(experts: Callable[..., ExpertsRecord]) -> None:
    record = experts(layers=(1,))
    assert record.status == "partial"
    assert [layer.layer for layer in record.layers] == [1]
    assert set(record.coverage.not_measured.values()) == {"left out by --layers"}
    assert len(record.coverage.not_measured) == 2


def test_a_narrow_probe_is_said_and_a_broad_one_is_not(
    experts: Callable[..., ExpertsRecord],
) -> None:
    for domains, words in (((None,), "no named domains"), (("code",), "one domain (code)")):
        notes = experts(probe_of(domains=domains), layers=(0,)).notes
        assert any(words in note and "Before you prune" in note for note in notes)
    broad = experts(probe_of(domains=("code", "prose")), layers=(0,))
    assert not any("Before you prune" in note for note in broad.notes)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (measure.NO_LABELS, {"probe": probe_of(np.full(40, -100))}),
        (measure.NOT_IN_MEMORY, {"stream": True}),
    ],
    ids=["labels", "stream"],
)
def test_trials_that_cannot_be_made_say_why(
    reason: str, change: dict[str, Any], experts: Callable[..., ExpertsRecord]
) -> None:
    if "probe" in change:
        change = {"probe": Probe.of((Sequence(i, np.full(len(i), -100), None) for i in IDS), "d")}
    record = experts(verify=1, layers=(1,), **change)
    assert record.verification is None
    assert reason in record.notes


def test_a_trial_changes_the_loss_by_what_it_says(experts: Callable[..., ExpertsRecord]) -> None:
    record = experts(verify=1, layers=(1,))
    assert record.verification is not None
    assert record.verification.loss.value == pytest.approx(record.loss.value)
    assert {trial.action for trial in record.verification.trials} == {"merge", "prune"}
    assert all(trial.change.value is not None for trial in record.verification.trials)


def test_without_experts_beside_any_router_there_is_an_error(
    experts: Callable[..., ExpertsRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        OfTransformers, "find_experts", lambda self, routers, _: {r.path: None for r in routers}
    )
    with pytest.raises(UnsupportedArchitectureError, match="no router's experts") as error:
        experts()
    assert measure.NO_EXPERTS in (error.value.found or "")


def test_as_many_inputs_are_kept_as_the_bound_allows() -> None:
    routers: Any = [SimpleNamespace(weight_ED=torch.zeros(4, 100))] * 3

    def kept(bytes_: int, tokens: int) -> np.ndarray:
        return measure._kept_rows(routers, tokens, SimpleNamespace(kept_bytes=bytes_, seed=0))  # type: ignore[arg-type]

    assert kept(2**30, 50).tolist() == list(range(50))
    few = kept(4 * 300 * 40, 1000)
    assert len(set(few.tolist())) == len(few) == 40
    assert few.max() < 1000
    assert len(kept(1, 1000)) == 16, "fewer tell nothing"


def test_experts_are_computed_one_by_one_only_meanwhile() -> None:
    model = build_tiny("mixtral")
    before = model.config._experts_implementation

    def fail() -> None:
        with measure._one_by_one(model):
            assert model.config._experts_implementation == "eager"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._experts_implementation == before
    with measure._one_by_one(torch.nn.Linear(2, 2)):
        pass  # a model that has no such choice
