"""A lens, a format, a metric, a scoring: each is one file, and is then there on every way in."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from safetensors.numpy import load_file
from typer.testing import CliRunner

import moegeo_cli
from moegeo_cli import Session, commands, registry, scorings
from moegeo_cli.cli.lens import lens_command
from moegeo_cli.errors import UsageError
from moegeo_cli.explanations.metrics import all_metrics, specs
from moegeo_cli.measuring import metrics as metrics_folder
from moegeo_cli.measuring.layers import router_metric_functions
from moegeo_cli.records.schema import schema
from moegeo_cli.reports import formats as formats_folder
from moegeo_cli.reports import render
from moegeo_cli.reports.json_report import read_any
from tests.own_models import models

# How many experts each router has, as `moegeo width`.
LENS = '''
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.keywords import select_options, takes
from moegeo_cli.options import Experts, LensOutput, Model
from moegeo_cli.records.metric import Coverage
from moegeo_cli.registry import Argument, Command, Lens

HERE = "moegeo_cli.commands.width"
COMMAND = Command(
    "width", Experts, (LensOutput,), api=f"{HERE}:width", record=f"{HERE}:WidthRecord",
    format="moegeo.width", page=f"{HERE}:page", lens=Lens(report=HERE),
    help="How many experts compete in each layer.",
    arguments=(Argument("path", "A checkpoint."),),
)


@dataclass(frozen=True, slots=True)
class WidthLayer:
    layer: int
    router: str
    experts: int
    matrices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WidthRecord:
    name: str
    step: int | None
    fingerprint: str
    probe: Mapping[str, Any]
    settings: Mapping[str, Any]
    coverage: Coverage
    layers: tuple[WidthLayer, ...]
    findings: tuple[str, ...] = ()
    interventions: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()


@takes(Experts)
def width(path, *, progress=None, **options):
    """The experts of each layer."""
    from moegeo_cli.checkpoints.routers import check_routers
    from moegeo_cli.models.choosing import choose_models

    models = choose_models(**select_options(Model, options))
    newest = models.open(path).newest
    architecture = models.describe(newest)
    routers = check_routers(newest.files, architecture)
    layers = tuple(
        WidthLayer(r.layer or 0, r.weight, architecture.experts_in(r.layer)) for r in routers
    )
    return WidthRecord(newest.path.name, newest.step, newest.fingerprint(), {}, {},
                       Coverage(len(layers), len(layers)), layers)


def lines(record):
    return [f"layer {x.layer}: {x.experts} experts" for x in record.layers]


def print_record(record, console):
    console.print("\\n".join(lines(record)))


def render(record):
    return "\\n".join(lines(record)) + "\\n"


def render_markdown(record):
    return "".join(f"- {line}\\n" for line in lines(record))


def page(record):
    from moegeo_cli.reports.html.parts import Page

    return Page("width", record.name, "", "; ".join(lines(record)), ())
'''
FORMAT = '''
"""A line a router."""

from moegeo_cli.registry import Format

FORMAT = Format("brief", suffixes=(".brief",), every="moegeo_cli.reports.formats.brief:write")


def write(record):
    return f"{type(record).__name__}: {len(record.layers)} routers\\n"
'''


# The entropy of a router's weights, row by row.
METRIC = """
import numpy as np

from moegeo_cli.explanations.metrics import MetricSpec
from moegeo_cli.geometry.resample import Estimate

METRIC = MetricSpec(
    "row_entropy", meaning="mean entropy of the squared entries of a router's rows", unit="nats",
    label="row entropy", definition="mean over rows of the entropy of w² / Σ w²", worst="min",
)


def estimate(router):
    share_ED = router.weight_ED.astype(float) ** 2
    share_ED /= share_ED.sum(1, keepdims=True)
    return Estimate(float(-(share_ED * np.log(share_ED)).sum(1).mean()), n=len(share_ED))
"""


# Scores softplus(z), as a config may call "softplus".
SCORING = """
import numpy as np

from moegeo_cli.scorings import Scoring


def softplus(z):
    return np.logaddexp(0.0, z)


def logs(logits):
    import torch

    value = torch.nn.functional.softplus(logits)
    return value.log(), logits.sigmoid() / value


SCORING = Scoring(
    "softplus", ("softplus",), softplus, lambda z: np.log(softplus(z)),
    lambda z: 1.0 / (1.0 + np.exp(-z)) / softplus(z),
    lambda logits: logs(logits)[0].exp(), logs, "this test",
)
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two files, in folders that are looked into beside moegeo's own."""
    files = (
        (commands, "width", LENS),
        (formats_folder, "brief", FORMAT),
        (metrics_folder, "row_entropy", METRIC),
        (scorings, "softplus", SCORING),
    )
    for package, name, text in files:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    forget()
    yield
    for package, name, _ in files:
        sys.modules.pop(f"{package.__name__}.{name}", None)
    monkeypatch.undo()
    forget()


def forget() -> None:
    registry.forget()
    tables = (
        all_metrics,
        specs,
        router_metric_functions,
        scorings.all_scorings,
        scorings.names_in_configs,
    )
    for known in tables:
        known.cache_clear()


def test_a_lens_is_one_file(added: None, tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny("mixtral")
    wanted = json.loads((path / "config.json").read_text())["num_local_experts"]
    record = Session(device="cpu").width(path)
    assert record == moegeo_cli.width(path)
    assert [layer.experts for layer in record.layers] == [wanted] * len(record.layers)
    text = render(record, "json")
    assert json.loads(text)["format"] == {"name": "moegeo.width", "version": 1}
    assert read_any(text) == record
    assert "layers" in schema("moegeo.width")["properties"]
    assert f"{wanted} experts" in render(record, "html")
    with pytest.raises(UsageError, match="`moegeo width` has no format 'junit'"):
        render(record, "junit")

    app = typer.Typer()
    app.command()(lens_command(registry.find_command("width")))
    run = CliRunner()
    assert "How many experts compete" in run.invoke(app, ["--help"]).output
    done = run.invoke(app, [str(path), "--format", "markdown"])
    assert done.output.splitlines()[-1] == f"- layer {len(record.layers) - 1}: {wanted} experts"
    assert run.invoke(app, [str(path)]).output == render(record, "rich")
    out = tmp_path / "width.json"
    run.invoke(app, [str(path), "-o", str(out)])
    assert out.read_text() == text


def test_a_format_is_one_file(added: None, tiny: Callable[..., Path], tmp_path: Path) -> None:
    record = moegeo_cli.width(tiny("mixtral"))
    assert render(record, "brief") == f"WidthRecord: {len(record.layers)} routers\n"
    assert registry.formats_of_reports()[-1] == registry.formats_of_lenses()[-1] == "brief"
    app = typer.Typer()
    app.command()(lens_command(registry.find_command("experts")))
    told = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "brief" in told


def settings_of(folder: Path) -> dict[str, Any]:
    rows = [[(7 * i + s) % 60 for i in range(12 + 9 * s)] for s in range(6)]
    probe = folder / "probe.jsonl"
    probe.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return {"probe": probe, "fisher": "categorical", "baseline": "none", "device": "cpu"}


def test_a_metric_is_one_file(added: None, tiny: Callable[..., Path], tmp_path: Path) -> None:
    path, store = tiny("mixtral"), tmp_path / "store"
    settings = settings_of(tmp_path)
    record = moegeo_cli.analyze(path, cache_dir=store, **settings)
    wanted = []
    for layer in record.newest.layers:
        stored = f"model.layers.{layer.layer}.block_sparse_moe.gate.weight"
        weight_ED = load_file(path / "model.safetensors")[stored].astype(float)
        rows = [row**2 / sum(row**2) for row in weight_ED]
        wanted.append(-sum(float(p * math.log(p)) for row in rows for p in row) / len(rows))
        assert layer.metrics["row_entropy"].value == pytest.approx(wanted[-1], rel=1e-6)
    assert record.newest.metrics["row_entropy"].value == pytest.approx(sum(wanted) / len(wanted))
    assert record.newest.metrics["row_entropy_worst"].value == pytest.approx(min(wanted))
    assert moegeo_cli.analyze(path, cache_dir=store, **settings).newest == record.newest
    assert read_any(render(record, "json")) == record
    assert ",row_entropy," in render(record, "csv")
    assert str(moegeo_cli.explain("row entropy")).startswith("row entropy (row_entropy)")


def test_a_metric_that_is_added_is_measured_although_a_measurement_is_kept(
    request: pytest.FixtureRequest, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    before = moegeo_cli.analyze(tiny("mixtral"), cache_dir=tmp_path / "store", **settings)
    assert "row_entropy" not in before.newest.metrics
    request.getfixturevalue("added")
    after = moegeo_cli.analyze(tiny("mixtral"), cache_dir=tmp_path / "store", **settings)
    value = after.newest.metrics["row_entropy"].value
    assert value is not None
    file = tmp_path / "row_entropy" / "row_entropy.py"
    file.write_text(METRIC.replace("Estimate(float(", "Estimate(2 * float("))
    sys.modules.pop("moegeo_cli.measuring.metrics.row_entropy")
    forget()
    again = moegeo_cli.analyze(tiny("mixtral"), cache_dir=tmp_path / "store", **settings)
    assert again.newest.metrics["row_entropy"].value == pytest.approx(2 * value)


def test_a_scoring_is_one_file(added: None, tmp_path: Path) -> None:
    """Routers of a model of the user's own are measured by it, from captured inputs."""
    model = models.Causal().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    inputs = tmp_path / "inputs.safetensors"
    with torch.no_grad(), moegeo_cli.capture_routers(model, inputs, router="blocks.*.gate"):
        model(torch.randint(0, 32, (6, 9), generator=torch.Generator().manual_seed(0)))
    record = moegeo_cli.analyze(
        tmp_path / "weights.pt", captures=inputs, router="blocks.*.gate", top_k=2,
        scoring="softplus", fisher="categorical", baseline="none", cache=False,
    )  # fmt: skip
    x = load_file(inputs)["router.blocks.1.gate.inputs"].astype(float)
    weight_ED = model.blocks[1].gate.weight.detach().numpy().astype(float)
    scores = np.log(1.0 + np.exp(x @ weight_ED.T))
    p = scores / scores.sum(1, keepdims=True)
    experts = p.shape[1]
    root = np.sqrt(p / experts).sum(1)
    furthest = 2 * math.acos(math.sqrt(1 / experts))
    wanted = np.mean(2 * np.arccos(root)) / furthest
    found = record.newest.layers[1]
    assert found.scoring == "softplus"
    assert found.metrics["fsi"].value == pytest.approx(wanted, rel=1e-4)
    assert found.fisher_trace is not None


def test_what_was_added_is_gone_afterwards() -> None:
    assert "width" not in registry.commands()
    assert "brief" not in registry.formats()
    assert "row_entropy" not in all_metrics()
    with pytest.raises(AttributeError, match="no attribute 'width'"):
        _ = moegeo_cli.width
    with pytest.raises(AttributeError, match="Session has no command 'width'"):
        _ = Session().width


def test_each_command_and_format_can_be_loaded() -> None:
    for command in registry.commands().values():
        assert command.function.__name__ == command.name
        if command.format:
            assert registry.command_of(registry.records()[command.format]) is command
            assert callable(registry.load(command.page or command.printer))
            known = ("json",) if command.printer else tuple(registry.formats())
            known = registry.formats_of_lenses() if command.lens else known
            record = registry.records()[command.format]
            found = [n for n in registry.formats() if registry.writer(record, n) is not None]
            assert tuple(found) == known
