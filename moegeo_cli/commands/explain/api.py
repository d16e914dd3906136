"""`explain` of the Python API: explains a name that a report prints."""

from __future__ import annotations

import dataclasses
from typing import Unpack

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.explanations.lookup import Explanation, find
from moegeo_cli.keywords import takes
from moegeo_cli.options import NoOptions
from moegeo_cli.verdict.interventions import catalogue
from moegeo_cli.verdict.thresholds import load_thresholds


@takes(NoOptions)
def explain(name: str, **options: Unpack[NoOptions]) -> Explanation:
    """Explain a finding, a metric or an error.

    Args:
        name: an id (MG101, MG-E011), a name (router-collapse, fsi), or a label of a report.
        options: none.

    Returns:
        The explanation: name, title, headline and parts with headings.

    Raises:
        UsageError: an unknown name.
    """
    found = find(name)
    if found.name not in definitions():
        return found
    limits = [
        f"{key} = {limit.value:g} ({limit.threshold.source})"
        for key, limit in load_thresholds().items()
        if key == found.name or key.startswith(f"{found.name}-")
    ]
    answers = [
        entry["title"] for entry in catalogue()["intervention"] if found.name in entry["findings"]
    ]
    more = (
        ("limit", "; ".join(limits)),
        ("what to do", "; ".join(answers)),
        ("more", "docs/reference/findings.md, docs/reference/interventions.md"),
    )
    parts = (*found.parts, *(part for part in more if part[1]))
    return dataclasses.replace(found, parts=parts)
