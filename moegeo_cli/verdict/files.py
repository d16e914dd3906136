"""Combines findings of `moegeo check` with those of the model."""

from __future__ import annotations

from collections.abc import Mapping

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.verdict.rules import Found, Outcome, Skipped

# What the rules of `moegeo check` say of a checkpoint, by the name of their finding.
FileOutcomes = Mapping[str, Outcome]
# Of these the files tell all that there is, and more exactly: which experts, since which step.
DECIDED_BY_FILES = frozenset(
    {"router-zero", "experts-damaged", "router-frozen", "bias-unused", "experts-identical"}
)
# Of these real inputs tell more than Gaussian ones.
DECIDED_BY_MODEL = frozenset({"bias-rounded"})
NOT_LOOKED_AT = Skipped("the files were not checked")


def with_files(model: Mapping[str, Outcome], files: FileOutcomes) -> dict[str, Outcome]:
    """Outcomes of the model's rules and the files' rules, one for each finding.

    Args:
        model: of the rules over what was measured.
        files: of the rules over the files; empty where nobody looked.
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
