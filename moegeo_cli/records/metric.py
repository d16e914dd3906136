"""A metric: one measured value with its interval; and the coverage: which routers were measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from moegeo_cli.records.fields import OMIT_IF_NONE, Count, about

NOT_FINITE = "not finite"  # the reason if NaN or infinity made a value meaningless
# Part of the reason if the probe has too few tokens for a test: "600 tokens cannot tell: about …".
NO_POWER = "tokens cannot tell: about"


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value with its interval."""

    value: Annotated[
        float | None, about("null where it could not be measured; then reason says why")
    ]
    ci_low: Annotated[float | None, about("lower end of the 95% interval over sequences")] = None
    ci_high: Annotated[float | None, about("upper end of the 95% interval")] = None
    n: Annotated[Count | None, about("sample units behind the value")] = None
    unit: Annotated[str, about("unit of the value: nats, share, 1, ...")] = "1"
    higher_is_better: Annotated[
        bool | None, about("null where neither direction is good by itself")
    ] = None
    null_value: Annotated[
        float | None,
        about("the expected value if there is no effect; left out if none is defined"),
        OMIT_IF_NONE,
    ] = None
    reason: Annotated[
        str | None,
        about("why the value is null, or a caution; else left out"),
        OMIT_IF_NONE,
    ] = None
    router: Annotated[
        str | None, about("the router that a maximum over routers comes from"), OMIT_IF_NONE
    ] = None

    @property
    def lacks_power(self) -> bool:
        """Whether the value is null because the probe has too few tokens for the test."""
        return self.value is None and NO_POWER in (self.reason or "")


# Added to the schema of a metric: a null value needs a reason.
NULL_HAS_REASON = {
    "if": {"properties": {"value": {"type": "null"}}},
    "then": {"required": ["reason"]},
}

Metrics = Annotated[Mapping[str, Metric], about("metrics by their names")]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the model's routers were measured, and why the others were not."""

    routers_found: Count
    routers_measured: Count
    not_measured: Annotated[Mapping[str, str], about("router path: why it was not measured")] = (
        field(default_factory=dict)
    )


def layer_name(layer: int, router: str) -> str:
    """A router's place in words: "3", "3 encoder" (of two stacks), "3 attention" (its router)."""
    side = re.match(r"(?:model\.)?(encoder|decoder)\.", router)
    words = [str(layer), *([side[1]] if side else [])]
    return " ".join([*words, *(["attention"] if re.search(r"attn|attention", router) else [])])
