"""A lens and an output format are each added by one file, and are there on every way in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import moegeo_cli
from moegeo_cli import Session, commands, registry
from moegeo_cli.cli.lens import lens_command
from moegeo_cli.errors import UsageError
from moegeo_cli.records.schema import schema
from moegeo_cli.reports import formats as formats_folder
from moegeo_cli.reports import render
from moegeo_cli.reports.json_report import read_any

# How many experts each router has, as `moegeo width`.
LENS = '''
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.keywords import part, takes
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

    models = choose_models(**part(Model, options))
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


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two files, in folders that are looked into beside moegeo's own."""
    for package, name, text in ((commands, "width", LENS), (formats_folder, "brief", FORMAT)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    registry.forget()
    yield
    for name in ("moegeo_cli.commands.width", "moegeo_cli.reports.formats.brief"):
        sys.modules.pop(name, None)
    monkeypatch.undo()
    registry.forget()


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


def test_what_was_added_is_gone_afterwards() -> None:
    assert "width" not in registry.commands()
    assert "brief" not in registry.formats()
    with pytest.raises(AttributeError, match="no attribute 'width'"):
        _ = moegeo_cli.width
    with pytest.raises(AttributeError, match="Session has no command 'width'"):
        _ = Session().width


def test_each_command_and_format_can_be_loaded() -> None:
    for command in registry.commands().values():
        assert command.function.__name__ == command.name
        if command.format:
            assert registry.command_of(registry.records()[command.format]) is command
            assert callable(registry.load(command.page))
            for name in registry.formats():
                found = registry.writer(registry.records()[command.format], name)
                assert (found is not None) == (
                    command.lens is None or name in registry.formats_of_lenses()
                )
