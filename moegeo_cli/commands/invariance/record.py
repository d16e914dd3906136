"""The result of `moegeo invariance`: its JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from moegeo_cli.records.facts import ProbeFacts
from moegeo_cli.records.fields import about


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A metric of the unchanged checkpoint, and of the rewritten one."""

    before: float | None
    after: float | None
    relative_change: Annotated[
        float | None, about("(after - before) / |before|; null where either is null or before is 0")
    ]


@dataclass(frozen=True, slots=True)
class FindingsChange:
    """Findings above info, as (id, severity)."""

    before: tuple[tuple[str, str], ...]
    after: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PaperChange:
    """Status by the policy `paper`."""

    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Rewriting:
    """One way to rewrite the weights, and what it changed."""

    name: str
    description: Annotated[str, about("what is rewritten")]
    applicable: Annotated[bool, about("whether the model allows it and its outputs stay equal")]
    reason: Annotated[str | None, about("why it is not applicable")]
    logits_deviation: Annotated[
        float | None,
        about("largest change of an output logit over the largest logit; null if not tried"),
    ]
    held: Annotated[
        bool | None,
        about(
            "whether fsi, collapse and dispersion of every router, and the findings, stay equal; "
            "null if not applicable"
        ),
    ]
    metrics: Annotated[Mapping[str, MetricChange], about("means over the routers, by name")]
    findings: FindingsChange | None
    paper: PaperChange | None


@dataclass(frozen=True, slots=True)
class InvarianceRecord:
    """The document that `moegeo invariance --format json` prints."""

    name: str
    checkpoint: str
    model_type: str
    probe: ProbeFacts
    settings: Mapping[str, Any]
    invariance: Annotated[tuple[Rewriting, ...], about("one entry per rewriting")]
