"""Checkpoints of tiny models, replayed and measured: against the model itself, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.routing.measure import measure_routing_record
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.commands.routing.replay import RoutingReplay
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.errors import ComparisonError, MoegeoError, UsageError
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe, Sequence
from tests.tiny_models import build_tiny

IDS = [np.random.default_rng(n).integers(0, 64, 9 + n) for n in range(10)]
DOMAINS = ("code", "prose", "code", None)


def probe_of(ids: list[np.ndarray] = IDS) -> Probe:
    return Probe.of(
        (Sequence(i, None, DOMAINS[n % len(DOMAINS)]) for n, i in enumerate(ids)), "drawn"
    )


def settings_of(**changes: Any) -> RoutingSettings:
    return RoutingSettings(**{"device": "cpu", "pairs": 256, **changes})


def measure(*checkpoints: Checkpoint, other: Any = None, **settings: Any) -> RoutingRecord:
    return measure_routing_record(checkpoints, Models(), probe_of(), settings_of(**settings), other)


@pytest.fixture
def saved(tiny: Callable[..., Path]) -> Callable[..., Checkpoint]:
    return lambda seed=0, kind="mixtral", step=None: Checkpoint(
        tiny(kind, seed), f"checkpoint-{step}", step=step
    )


def test_a_replay_has_what_the_models_own_routers_did(saved: Callable[..., Checkpoint]) -> None:
    analysis = RoutingReplay(Models(), saved(), probe_of(), settings_of(), None)
    found = analysis.replay(saved())
    model = build_tiny("mixtral")
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if name.endswith("gate"):
            module.register_forward_hook(
                lambda m, args, out, n=name: seen.setdefault(n, []).append(
                    args[0].reshape(-1, args[0].shape[-1]) @ m.weight.T
                )
            )
    with torch.no_grad():
        for ids in IDS:
            model(input_ids=torch.from_numpy(ids)[None])
    assert found.coverage.routers_found == found.coverage.routers_measured == 3
    assert found.kept == sum(map(len, IDS))
    for tokens in found.routers:
        logits_TE = torch.cat(seen[tokens.router]).numpy()
        np.testing.assert_allclose(tokens.logits_TE, logits_TE, atol=1e-4)
        chosen = np.sort(np.argsort(-logits_TE, axis=1)[:, :2], axis=1)
        np.testing.assert_array_equal(np.sort(tokens.usage.selected_TK, axis=1), chosen)
        np.testing.assert_array_equal(
            tokens.usage.sequence_T, np.repeat(np.arange(len(IDS)), [len(i) for i in IDS])
        )


def test_a_checkpoint_of_another_architecture_is_no_part_of_the_run(
    saved: Callable[..., Checkpoint],
) -> None:
    analysis = RoutingReplay(Models(), saved(), probe_of(), settings_of(), None)
    with pytest.raises(UsageError, match="another architecture"):
        analysis.replay(saved(kind="qwen2_moe"))


def test_the_record_has_means_over_layers_and_each_domain(
    saved: Callable[..., Checkpoint],
) -> None:
    record = measure(saved(step=5))
    assert (record.status, record.step, record.trajectory) == ("complete", 5, None)
    for name in ("shared_energy", "overlap_unrelated", "collapse"):
        own = [layer.metrics[name].value for layer in record.layers]
        assert record.metrics[name].value == pytest.approx(np.mean(own)), name  # type: ignore[arg-type]
    assert [(d.domain, d.sequences) for d in record.domains] == [("code", 5), ("prose", 3)]
    code = sum(len(i) for n, i in enumerate(IDS) if DOMAINS[n % 4] == "code")
    assert record.domains[0].tokens == code
    assert record.settings["pairs"] == 256
    assert record.fingerprint == saved().fingerprint("sampled")


def test_layers_that_were_not_asked_for_are_named(saved: Callable[..., Checkpoint]) -> None:
    record = measure(saved(), layers=(2,))
    assert record.status == "partial"
    assert [layer.layer for layer in record.layers] == [2]
    assert set(record.coverage.not_measured.values()) == {"left out by --layers"}


def test_the_newest_is_measured_and_all_are_on_the_way(saved: Callable[..., Checkpoint]) -> None:
    first, last = saved(0, step=0), saved(1, step=10)
    record = measure(first, last)
    assert record.step == 10
    assert record.trajectory is not None
    assert [stage.step for stage in record.trajectory.steps] == [0, 10]
    alone = measure(first)
    for own, layer in zip(record.trajectory.steps[0].layers, alone.layers, strict=True):
        assert own.metrics["shared_energy"] == layer.metrics["shared_energy"]
    last_saturation = [x.metrics["saturation"].value for x in record.trajectory.steps[1].layers]
    assert last_saturation == pytest.approx([1.0] * 3), "the newest is its own end"


def test_a_second_model_is_compared_on_the_same_tokens(saved: Callable[..., Checkpoint]) -> None:
    same = measure(saved(), other=(saved(), probe_of())).other
    assert same is not None
    assert same.lineage is True
    assert all(p.metrics["overlap_same_token"].value == pytest.approx(1) for p in same.layers)
    with pytest.raises(ComparisonError, match="as different tokens") as error:
        measure(saved(), other=(saved(), probe_of(IDS[:4])))
    assert f"{sum(map(len, IDS))} tokens against" in (error.value.found or "")


def test_without_a_router_that_can_be_measured_there_is_an_error(
    saved: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "moegeo_cli.commands.routing.replay.gather_routed", lambda *_: "it is not called"
    )
    with pytest.raises(MoegeoError, match="no router could be measured") as error:
        measure(saved())
    assert "it is not called" in (error.value.found or "")
