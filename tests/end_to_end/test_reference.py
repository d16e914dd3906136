"""`moegeo analyze` against an independent computation, on eight architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Outcome
from tests.reference import reference_metrics
from tests.tiny_models import CONFIGS

PER_EXPERT = ("load", "mean_probability")
TOLERANCE = 1e-4


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_every_metric_agrees_with_the_reference(
    model_type: str, tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    path = tiny(model_type, 3)
    ids = [json.loads(line)["input_ids"] for line in probe.read_text().splitlines()]
    truth = reference_metrics(path, ids)
    found = moegeo("analyze", path, "--probe", probe, "--no-cache", "--format", "json",
                   "--baseline", "none")  # fmt: skip
    assert found.code == 0, found.err
    checkpoint = found.document["checkpoints"][0]
    assert checkpoint["loss"]["value"] == pytest.approx(truth["loss"], rel=TOLERANCE)
    assert checkpoint["coverage"]["routers_measured"] == len(truth["routers"])
    for layer in checkpoint["layers"]:
        own = truth["routers"][layer["router"]]
        for name, expected in own.items():
            if name.startswith("fisher."):
                _, kind, unit = name.split(".")
                for form, value in expected.items():
                    got = layer["fisher"][kind][unit][form]["value"]
                    assert got == pytest.approx(value, rel=TOLERANCE), (name, form)
            elif name in PER_EXPERT:
                assert layer[name] == pytest.approx(expected, rel=TOLERANCE, abs=1e-9), name
            else:
                got = layer["metrics"][name]["value"]
                assert got == pytest.approx(expected, rel=TOLERANCE, abs=1e-7), name
        assert layer["metrics"]["heterogeneity"]["value"] == pytest.approx(
            own["fisher.empirical.position"]["heterogeneity"], rel=TOLERANCE
        )
