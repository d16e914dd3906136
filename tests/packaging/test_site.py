"""The documentation as a site and the executed notebook."""

from __future__ import annotations

import json
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebook import CELLS, PAGE

ROOT = Path(__file__).parents[2]


def test_the_site_lists_every_page() -> None:
    listed = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in listed} == set()


def test_every_name_of_the_python_page_exists() -> None:
    names = re.findall(
        r"^::: (\S+)$", (ROOT / "docs/reference/python.md").read_text(), re.MULTILINE
    )
    assert len(names) > 10
    assert [name for name in names if pydoc.locate(name) is None] == []


def test_the_notebook_is_that_of_its_script_and_was_executed() -> None:
    cells = json.loads(PAGE.read_text())["cells"]
    assert [(c["cell_type"], "".join(c["source"])) for c in cells] == list(CELLS)
    code = [c for c in cells if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    shown = [output for c in code for output in c["outputs"]]
    assert all(output["output_type"] != "error" for output in shown)
    assert "The balance loss is switched off." in json.dumps(code[0]["outputs"])
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    """As `make docs` builds it, in an environment of its own; every link leads somewhere."""
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    install = [python, "-m", "pip", "install", "-q", "mkdocs-material", "mkdocstrings[python]"]
    subprocess.run(install, env=environment, check=True)
    site = tmp_path / "site"
    build = [python, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (site / "reference" / "python" / "index.html").read_text()
    assert "Measure the checkpoints of a run, judge the run" in text
    gallery = (site / "gallery" / "index.html").read_text()
    assert (site / "pictures" / "analyze.svg").is_file()
    assert "pictures/analyze.svg" in gallery
