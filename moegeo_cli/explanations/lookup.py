"""Look up the explanation of a finding, metric or error by its id, name or label."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.errors import UsageError
from moegeo_cli.explanations.findings import Definition, definitions
from moegeo_cli.explanations.metrics import all_metrics, specs

FOLDER = Path(__file__).parent
# Short labels in narrow tables, and their metrics.
SHORT = {"h": "heterogeneity", "h trace": "heterogeneity_trace", "dead": "dead_experts",
         "h cond.": "heterogeneity_conditional", "entropy": "entropy_load"}  # fmt: skip
PAGES = {
    "metrics": "docs/reference/metrics.md", "experts": "docs/reference/experts.md",
    "routing": "docs/reference/routing.md",
}  # fmt: skip
GOOD = {True: "higher is better", False: "lower is better", None: "neither end is good by itself"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a name.

    Attributes:
        name: the name in JSON.
        title: id and name, as a heading.
        headline: the meaning in one sentence.
        parts: (heading, text) pairs: what it is, why it matters, what to do, …
    """

    name: str
    title: str
    headline: str
    parts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [self.title, self.headline, ""]
        return "\n".join([*lines, *(f"{head}: {text}" for head, text in self.parts)])


@functools.cache
def error_rows() -> Mapping[str, Mapping[str, str]]:
    """The rows of errors.toml by error code."""
    return tomllib.loads((FOLDER / "errors.toml").read_text(encoding="utf-8"))


def explain_finding(about: Definition) -> Explanation:
    """Explain a finding, without its limits and interventions (these come from verdict/)."""
    parts = [
        ("what", about.meaning),
        ("holds when", _plain(about.holds)),
        ("severity", f"{about.shipped or about.severity} at worst, about {about.axis}"),
        ("why", about.why),
        ("example", about.example),
        ("known limits", about.known),
        ("found by", f"moegeo {about.lens or 'analyze'}"),
    ]
    title = f"{about.id} {about.name}"
    return Explanation(about.name, title, about.headline, tuple(p for p in parts if p[1]))


def explain_metric(name: str) -> Explanation:
    """Explain a metric; its name may end in `_worst`."""
    base = name.removesuffix("_worst")
    spec = all_metrics()[base]
    label = spec.label or base.replace("_", " ")
    definition = _plain(spec.definition)
    meaning = spec.meaning or definition
    worst = "the worst router's; the router is named beside it" if base != name else ""
    parts = [
        ("why", spec.why),
        ("worst", worst),
        ("computed as", definition if spec.meaning else ""),
        ("range", spec.range),
        ("unit", "" if spec.unit == "1" else spec.unit),
        ("good", GOOD[spec.higher_is_better] if spec.label else ""),
        ("null beside it", _plain(spec.null)),
        ("invariant under", spec.invariant),
        ("more", PAGES[spec.page]),
    ]
    headline = meaning[0].upper() + meaning[1:].rstrip(".") + "."
    return Explanation(name, f"{label} ({name})", headline, tuple(p for p in parts if p[1]))


def explain_error(code: str) -> Explanation:
    """Explain an error by its code."""
    row = error_rows()[code]
    meaning = row["meaning"]
    parts = (("what to do", row["do"]), ("more", "docs/reference/errors.md"))
    return Explanation(code, code, meaning[0].upper() + meaning[1:].rstrip(".") + ".", parts)


def names() -> dict[str, list[str]]:
    """All names that `find` knows, by kind."""
    found = [f"{d.id} {d.name}" for d in sorted(definitions().values(), key=lambda d: d.id)]
    return {"findings": found, "metrics": sorted(all_metrics()), "errors": sorted(error_rows())}


def find(name: str) -> Explanation:
    """Explain a finding, metric or error, given by id, name or label (in any case).

    Raises:
        UsageError: there is no such name.
    """
    given = name.strip().lower()
    for about in definitions().values():
        if given in (about.id.lower(), about.name):
            return explain_finding(about)
    code = given.upper() if given.startswith("mg-") else f"MG-{given.upper()}"
    if code in error_rows():
        return explain_error(code)
    wanted = given.removesuffix(", worst router")
    wanted = SHORT.get(wanted, wanted)
    labels = {spec.label.lower(): spec.name for spec in specs().values()}
    wanted = labels.get(wanted, re.sub(r"[\s-]+", "_", wanted))
    if wanted.removesuffix("_worst") in all_metrics():
        return explain_metric(wanted)
    known = [d.id.lower() for d in definitions().values()]
    known += [*definitions(), *all_metrics(), *labels, *(c.lower() for c in error_rows())]
    near = difflib.get_close_matches(given, known, 3)
    raise UsageError(
        f"no finding, metric or error is called {name!r}",
        found=f"did you mean {', '.join(near)}?" if near else None,
        hint="moegeo explain lists all names",
    )


def _plain(text: str) -> str:
    """Text without Markdown markup."""
    text = re.sub(r" \(\[(?:below|how it is judged)\]\([^)]*\)\)", "", text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "").replace("`", "")
