"""Write tables and figures of docs/results/evidence.md, and the table of areas, from the tables.

The page holds prose and blocks between `<!-- begin NAME -->` and `<!-- end NAME -->`, which this
fills; `check` changes nothing and fails where something would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.evidence import rule_sections, sections
from benchmarks.evidence.analysis import Results
from benchmarks.evidence.figures import draw_all
from benchmarks.evidence.table import FOLDER, table_bytes, write_table

PAGE = Path(__file__).parents[2] / "docs" / "results" / "evidence.md"
FIGURES = PAGE.parent / "evidence"


BLOCKS: dict[str, Callable[[Results], str]] = {
    "claims": sections.claims_block,
    "runs": sections.runs_block,
    "variance": sections.variance_block,
    "primary": sections.primary_block,
    "areas": sections.areas_block,
    "early": sections.early_block,
    "exploratory": sections.exploratory_block,
    "sets": sections.sets_block,
    "detection": rule_sections.detection_block,
    "foretelling": rule_sections.foretelling_block,
    "limits": rule_sections.limits_block,
    "left-out": rule_sections.left_out_block,
    "rules": rule_sections.rules_block,
    "stopping": rule_sections.stopping_block,
    "paper": sections.paper_block,
    "fsi": sections.fsi_block,
    "diagonal": sections.diagonal_block,
    "probes": sections.probes_block,
    "interventions": rule_sections.interventions_block,
}


def write_report(*, check: bool = False) -> int:
    """Fill the page and draw the figures; 1 where `check` finds a difference, else 0."""
    results = Results()
    before = PAGE.read_text(encoding="utf-8")
    after = before
    for name, block in BLOCKS.items():
        after = fill(after, name, block(results))
    figures = draw_all(results)
    changed = [] if after == before else [PAGE.name]
    for name, text in figures.items():
        path = FIGURES / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed.append(name)
    path = FOLDER / "areas.csv.gz"
    if not path.exists() or path.read_bytes() != table_bytes(results.areas):
        changed.append(path.name)
    if check:
        print("\n".join(f"{name} differs" for name in changed) or "nothing differs")
        return 1 if changed else 0
    PAGE.write_text(after, encoding="utf-8")
    write_table("areas", results.areas)
    FIGURES.mkdir(exist_ok=True)
    for name, text in figures.items():
        (FIGURES / name).write_text(text, encoding="utf-8")
    print(f"{PAGE.name}: {', '.join(changed) or 'unchanged'}")
    return 0


def fill(page: str, name: str, block: str) -> str:
    """The page with one block replaced; as it is where the page has no such block."""
    pattern = re.compile(
        rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL
    )
    return pattern.sub(lambda m: f"{m[1]}{block.rstrip()}\n{m[2]}", page)
