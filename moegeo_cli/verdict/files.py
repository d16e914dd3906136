"""Combine the findings of `moegeo check` (from files) with those of the replay (from the model)."""

from __future__ import annotations

from collections.abc import Mapping

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.verdict.rules import Found, Outcome, Skipped

# The outcomes of the rules of `moegeo check` for one checkpoint, by the name of their finding.
FileOutcomes = Mapping[str, Outcome]
# Findings that the files decide: they show more exactly which experts, and since which step.
DECIDED_BY_FILES = frozenset(
    {"router-zero", "experts-damaged", "router-frozen", "bias-unused", "experts-identical"}
)
# Findings that the replay decides: real inputs are better evidence than Gaussian ones.
DECIDED_BY_MODEL = frozenset({"bias-rounded"})
NOT_LOOKED_AT = Skipped("the files were not checked")


def merge_file_outcomes(model: Mapping[str, Outcome], files: FileOutcomes) -> dict[str, Outcome]:
    """Merge the outcomes of the rules over the replay and over the files.

    Args:
        model: outcomes of the rules over what was replayed.
        files: outcomes of the rules over the files; empty if the files were not checked.

    Returns:
        One outcome for each finding.
    """
    found = dict(model)
    for name, about in definitions().items():
        if about.lens == "check":
            measured = found.get(name, NOT_LOOKED_AT)
            decides = name in DECIDED_BY_MODEL and not isinstance(measured, Skipped)
            if not decides and not isinstance(measured, Found):
                found[name] = files.get(name, NOT_LOOKED_AT)
        elif name in files:
            outcome = files[name]
            decides = name in DECIDED_BY_FILES and not isinstance(outcome, Skipped)
            if decides or isinstance(outcome, Found):
                found[name] = outcome
    return found
