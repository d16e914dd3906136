"""The documents name everything that exists, and link to nothing that does not."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from moegeo_cli import errors, experts
from moegeo_cli.commands.experts.record import (
    ExpertLayerRecord,
    ExpertRecord,
    ExpertsRecord,
    MergeCandidate,
    PruneCandidate,
    Trial,
    Verification,
)
from moegeo_cli.commands.routing.record import (
    UNITS,
    DomainRecord,
    GeometryRecord,
    OtherModel,
    RouterMetrics,
    RouterPair,
    RoutingLayerRecord,
    RoutingRecord,
    RoutingStep,
    Trajectory,
)
from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import CheckpointRecord, Finding, Intervention, LayerRecord, RunRecord
from moegeo_cli.records.check import CheckedCheckpoint, CheckedLayer, CheckRecord
from moegeo_cli.verdict.interventions import catalogue
from moegeo_cli.verdict.thresholds import load_thresholds
from tests.pictures import FOLDER, lines_of
from tests.screens_page import BLOCK
from tests.screens_page import PAGE as SCREENS

RECORDS = (
    ExpertsRecord, ExpertLayerRecord, ExpertRecord, MergeCandidate, PruneCandidate, Trial,
    Verification, RoutingRecord, RoutingLayerRecord, GeometryRecord, DomainRecord, RouterMetrics,
    RoutingStep, Trajectory, RouterPair, OtherModel, CheckRecord, CheckedCheckpoint, CheckedLayer,
)  # fmt: skip
ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *(page for part in ("docs", "benchmarks") for page in sorted((ROOT / part).rglob("*.md"))),
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def words(page: str) -> set[str]:
    """Everything that a page sets in code style, and the words of its code blocks."""
    text = (ROOT / "docs" / page).read_text()
    return set(re.findall(r"[\w-]+", " ".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))))


def anchors(page: Path) -> set[str]:
    """What `#…` may name in a page, as GitHub makes it of headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pictures_show_what_is_printed() -> None:
    """The terminal's picture holds the lines of the tutorial, which another test holds to a run."""
    shown = {"".join(line.split()) for line in lines_of(FOLDER / "analyze.svg")}
    tutorial = (ROOT / "docs" / "tutorial" / "your-first-run.md").read_text()
    screen = tutorial.partition("moegeo unbalanced-mixtral")[2].partition("```")[0]
    lines = {"".join(line.split()) for line in screen.splitlines()[1:]} - {""}
    assert len(lines) > 15
    assert lines - shown == set()


@pytest.mark.parametrize("command", ["analyze", "check", "compare", "experts", "routing"])
def test_the_reference_shows_the_screens_of_the_pictures(command: str) -> None:
    shown = {"".join(line.split()) for line in lines_of(FOLDER / f"{command}.svg")}
    [screen] = [text for _, said, text, _ in BLOCK.findall(SCREENS.read_text("utf-8"))
                if said.split()[0] == command]  # fmt: skip
    lines = {"".join(line.split()) for line in screen.splitlines()} - {""}
    assert lines == shown - {""}, "python -m tests.screens_page, python -m tests.pictures"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    pages = {str(page.relative_to(index.parent)) for page in index.parent.rglob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)\s]+)\)", index.read_text())) == {"README.md"}


@pytest.mark.parametrize("page", PAGES[2:], ids=name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """Of code, tests and data; commands name them without a link."""
    paths = re.findall(
        r"\b(?:moegeo_cli|tests|benchmarks|sample_checkpoints)/[\w/.-]*\w", page.read_text()
    )
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_file_that_contributing_names_exists() -> None:
    """Within the package, unless they begin with a folder beside it."""
    told = re.findall(r"`([\w./]+/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    paths = [path for path in told if not re.search("NAME|LENS|FILE|build/", path)]
    assert len(paths) > 40
    lost = {p for p in paths if not any((r / p).exists() for r in (ROOT, ROOT / "moegeo_cli"))}
    assert lost == set()
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named - {path.name for path in (ROOT / "moegeo_cli").rglob("*.py")} == set()


def test_contributing_names_every_folder_and_file_of_the_package() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    parts = [p for p in (ROOT / "moegeo_cli").iterdir() if not p.name.startswith(("_", "py.typed"))]
    assert len(parts) > 30
    assert {p.name for p in parts if f"`{p.name}{'/' * p.is_dir()}" not in page} == set()


@pytest.mark.parametrize("folder", ["moegeo_cli", "benchmarks", "sample_checkpoints", "tests"])
def test_every_page_that_code_names_exists(folder: str) -> None:
    """In messages, help, comments and data files."""
    files = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.toml")]
    named = {path for file in files for path in re.findall(r"docs/[\w/-]+\.md", file.read_text())}
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_module_that_a_command_names_exists(page: Path) -> None:
    for module in re.findall(
        r"python -m ((?:benchmarks|sample_checkpoints)[\w.]*)", page.read_text()
    ):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_every_metric_is_defined() -> None:
    known = words("reference/metrics.md") | {"loss", "zipf_slope"}
    assert {name for name in specs() if name not in known} == set()


def test_the_glossary_explains_every_label() -> None:
    page = (ROOT / "docs" / "concepts" / "glossary.md").read_text().lower()
    assert {s.label for s in specs().values() if s.label.lower() not in page} == set()


def test_every_finding_and_limit_is_explained() -> None:
    known = words("reference/findings.md") | words("concepts/verdict.md")
    file = resources.files("moegeo_cli.explanations") / "findings.toml"
    findings = tomllib.loads(file.read_text("utf-8"))
    assert {n for n in findings if n not in known} == set()
    page = (ROOT / "docs" / "reference" / "findings.md").read_text()
    assert all(f"| {entry['id']} | `{name}` |" in page for name, entry in findings.items())
    assert {n for n in load_thresholds() if n not in known} == set()


def test_every_error_has_a_line() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {k.code for k in kinds if issubclass(k, errors.MoegeoError)} - {errors.MoegeoError.code}
    assert all(f"| {code} | " in page for code in codes)


def test_every_intervention_is_listed() -> None:
    known = words("reference/interventions.md")
    assert {entry["id"] for entry in catalogue()["intervention"]} - known == set()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_key_of_the_lenses_formats_is_named(record: type) -> None:
    assert {f.name for f in dataclasses.fields(record)} - words("reference/json.md") == set()


def test_every_number_about_routing_is_explained() -> None:
    assert set(UNITS) - words("reference/routing.md") == set()


def test_every_number_about_experts_is_explained() -> None:
    sample = ROOT / "sample_checkpoints" / "healthy-qwen3-moe"
    [layer] = experts(sample, max_tokens=600, layers="0", cache=False).layers
    known = words("reference/experts.md")
    names = {*layer.metrics, *(name.removesuffix("_null") for name in layer.matrices)}
    assert names - known == set()


@pytest.mark.parametrize(
    "record", [RunRecord, CheckpointRecord, LayerRecord, Finding, Intervention]
)
def test_every_key_of_the_format_is_named(record: type) -> None:
    known = words("reference/json.md")
    assert {f.name for f in dataclasses.fields(record)} - known == set()
