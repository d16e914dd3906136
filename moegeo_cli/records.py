"""What moegeo found, as frozen records: the one shape that verdict, store and reports share.

A record holds plain Python values only, so that reading a stored run needs neither torch
nor numpy. `to_dict` gives the JSON form and `from_dict` reads it back; the format's version
stands in `FORMAT_VERSION`, its history beside it.

Legend: E routed experts, K experts chosen per token, L routers, T real probe positions.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

FORMAT_NAME = "moegeo.run"
# 1: first version.
FORMAT_VERSION = 1


NOT_FINITE = "not finite"  # the reason of a value that NaN or infinity spoilt


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value; `value` is None where it could not be measured, and `reason` says why.

    `n` counts the sample units behind the value (`unit` of the value itself: nats, share, ...).
    `router` names the router that a run-level maximum comes from.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    unit: str = "1"
    higher_is_better: bool | None = None
    null_value: float | None = None
    reason: str | None = None
    router: str | None = None


Metrics = Mapping[str, Metric]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Routers that the model has against routers that were measured."""

    routers_found: int
    routers_measured: int
    not_measured: Mapping[str, str] = field(default_factory=dict)  # router path -> reason


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One router.

    `layer` is the index of the decoder layer, `router` the module path in the model.
    The per-expert arrays have length E; `load` is the share of dispatch and sums to 1,
    `fisher_trace` is null for an expert without a Fisher. `fisher` holds the
    heterogeneity metrics of every kind and unit computed: fisher[kind][unit][name].
    `state` is "ok", "nonfinite" (NaN or Inf in the router) or "zero" (all rows zero).
    `zero_rows` are experts whose row of the router is zero; `experts_nonfinite` and `experts_zero`
    experts with NaN or Inf, or with zeros, in their weights; `experts_identical` groups of experts
    whose weights are equal bit for bit: null where those were not in memory. `masked` are experts
    that a row of the router or a bias switches off. Routing metrics leave out those of them that no
    token reached.
    """

    layer: int
    router: str
    experts: int
    top_k: int | None
    scoring: str
    metrics: Metrics
    load: tuple[float | None, ...] | None = None
    mean_probability: tuple[float | None, ...] | None = None
    fisher_trace: tuple[float | None, ...] | None = None
    fisher: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)
    dead: tuple[int, ...] = ()
    # experts that are significantly unused in every domain in which the probe has the power to tell
    dead_in_all_domains: tuple[int, ...] | None = None
    domain_load: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    state: str = "ok"
    zero_rows: tuple[int, ...] = ()
    experts_nonfinite: tuple[int, ...] | None = None
    experts_zero: tuple[int, ...] | None = None
    experts_identical: tuple[tuple[int, ...], ...] | None = None
    masked: tuple[int, ...] = ()

    @property
    def choices(self) -> int:
        """Number of experts that can be chosen: E without those that are off."""
        return self.experts - len(self.off)

    @property
    def off(self) -> tuple[int, ...]:
        """Masked experts that no token reached."""
        return tuple(e for e in self.masked if self.load is None or not self.load[e])


@dataclass(frozen=True, slots=True)
class Evidence:
    """A number that a finding rests on."""

    name: str
    metric: Metric
    layer: int | None = None
    router: str | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """The limit that a finding compares with, and where that limit comes from.

    `source` is a citation or "uncalibrated"; the measured rates are None where nobody measured.
    """

    value: float | None
    source: str
    precision: float | None = None
    recall: float | None = None
    false_positive_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule saw: severity info, watch or failing; state active or resolved."""

    id: str
    name: str
    severity: str
    axis: str  # "routing", "performance" or "measurement"
    message: str
    layers: tuple[int, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    threshold: Threshold | None = None
    state: str = "active"
    steps: tuple[int, ...] = ()  # the checkpoints' steps at which the rule held


@dataclass(frozen=True, slots=True)
class Check:
    """A rule that was tried. Outcome: passed, found (then a finding has its id) or skipped.

    `reason` says why a skipped rule could not be decided, for instance too few checkpoints.
    """

    id: str
    name: str
    axis: str
    outcome: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Status words: healthy, watch, failing, inconclusive; performance also undetermined."""

    status: str
    routing: str
    performance: str
    policy: str
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()  # why the status is what it is, one sentence each
    checks: tuple[Check, ...] = ()  # every rule that was tried


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """The setting that an intervention changes, in the user's own framework."""

    framework: str
    key: str | None  # None: this framework has no such key
    current: Any = None
    suggested: Any = None
    live: bool | None = None  # does the framework read it at all? None: not known
    note: str | None = None
    lines: str | None = None  # code to add where there is no key


@dataclass(frozen=True, slots=True)
class Intervention:
    """What to change, why it applies here, how to see that it worked, how well that is known."""

    id: str
    title: str
    action: str
    findings: tuple[str, ...]
    why: str
    key: ConfigKey
    check: str
    evidence: Mapping[str, Any]  # {"grade": "measured"|"literature"|"untested", ...}
    conflicts: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    folded: bool = False  # measured, and nothing was gained by it


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """One checkpoint, measured. `progress` holds step, tokens and fraction where they are known.

    `fisher` holds the run-level heterogeneity of every kind and unit: fisher[kind][unit][name].
    """

    step: int | None
    path: str  # relative to the run
    fingerprint: str
    coverage: Coverage
    loss: Metric  # nats per loss token
    metrics: Metrics
    layers: tuple[LayerRecord, ...]
    fisher: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)
    verdict: Verdict | None = None
    progress: Mapping[str, int | float | None] = field(default_factory=dict)
    measurements: str | None = None  # sha256 of measurements.safetensors
    replay: Mapping[str, Any] = field(
        default_factory=dict
    )  # device, dtype, batch size, threads, notes
    domain_loss: Metrics = field(default_factory=dict)  # of each domain of the probe


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A whole run, judged. The JSON payload of `moegeo analyze`.

    `run` holds name, layout, model_type, architecture, framework, parameters, settings
    (the training settings that interventions read), log (loss entries of the trainer's
    state, each {"step", "loss", ...}), skipped (checkpoints left out, with reasons).
    `dynamics` has one entry per pair of successive checkpoints: from_step, to_step, from_path,
    to_path, metrics over routers, and layers, each {layer, router, metrics}.
    """

    status: str  # "complete", or "partial" where a checkpoint or a router was left out
    versions: Mapping[str, str]
    run: Mapping[str, Any]
    probe: Mapping[str, Any]
    settings: Mapping[str, Any]
    baseline: Mapping[str, Any]
    checkpoints: tuple[CheckpointRecord, ...]
    verdict: Verdict | None = None
    interventions: tuple[Intervention, ...] = ()
    dynamics: tuple[Mapping[str, Any], ...] = ()

    @property
    def newest(self) -> CheckpointRecord:
        """The newest complete checkpoint: the one that the run is judged by."""
        return self.checkpoints[-1]


def layer_name(layer: int, router: str) -> str:
    """A router's place for people: its layer, its side of a model with two, attention's routers."""
    side = re.match(r"(?:model\.)?(encoder|decoder)\.", router)
    words = [str(layer), *([side[1]] if side else [])]
    return " ".join([*words, *(["attention"] if re.search(r"attn|attention", router) else [])])


R = TypeVar("R")


def to_dict(record: Any) -> Any:
    """Turn a record (or a mapping, sequence or scalar of them) into plain JSON values.

    Raises:
        ValueError: a NaN or an infinity, which JSON cannot hold and a record may not.
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_dict(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [to_dict(value) for value in record]
    if isinstance(record, float) and (record != record or record in (float("inf"), -float("inf"))):
        raise ValueError("a record may not hold NaN or infinity; use None and a reason")
    return record


def from_dict(cls: type[R], data: Any) -> R:
    """Read a record back from its JSON form; unknown keys are left out (a newer minor writer).

    Raises:
        TypeError or ValueError: the data does not have the record's shape.
    """
    return typing.cast(R, _build(cls, data))


_hints = functools.cache(typing.get_type_hints)


def _build(kind: Any, data: Any) -> Any:
    """Rebuild `data` as the annotated type `kind`."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            return None
        return _build(next(k for k in typing.get_args(kind) if k is not type(None)), data)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, Mapping):
            raise TypeError(f"{kind.__name__} expects an object, got {type(data).__name__}")
        hints = _hints(kind)
        return kind(
            **{
                f.name: _build(hints[f.name], data[f.name])
                for f in dataclasses.fields(kind)
                if f.name in data
            }
        )
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_build(inner, item) for item in data)
    if origin is not None and isinstance(data, Mapping):
        inner = typing.get_args(kind)[1]
        return {key: _build(inner, value) for key, value in data.items()}
    return data
