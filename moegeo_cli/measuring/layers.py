"""From the stored arrays of a checkpoint to its record: metrics of each router and over routers.

Legend: S sequences, E experts, B draws.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moegeo_cli.explanations.metrics import all_metrics
from moegeo_cli.geometry.dead import DeadTest, find_dead
from moegeo_cli.geometry.estimates import (
    HASHED,
    ROUTING_NAMES,
    over_routers,
    ratio_of_sums,
    routing_estimates,
)
from moegeo_cli.geometry.heterogeneity import FORMS, heterogeneity_estimates
from moegeo_cli.geometry.resample import Draws, Estimate, make_draws, missing
from moegeo_cli.measuring.arrays import CheckpointArrays, RouterArrays
from moegeo_cli.probes import Probe
from moegeo_cli.records import CheckpointRecord, Coverage, LayerRecord, Metrics
from moegeo_cli.registry import load, router_metrics
from moegeo_cli.settings import Settings

Estimates = Mapping[str, Estimate]
NO_LOSS = "the probe has no loss token: its sequences are too short, or all labels are left out"
Kind = tuple[str, str]
FISHER_NAMES = (*FORMS, "low_sample_experts")


@functools.cache
def router_metric_functions() -> Mapping[str, Callable[[RouterArrays], Estimate]]:
    """The functions of the metrics in `measuring/metrics/`, by name."""
    places = router_metrics()
    return {n: load(f"{places[n]}:estimate") for n in all_metrics() if n in places}


@dataclass(frozen=True)
class CheckpointEstimates:
    """All estimates of a checkpoint, with their bootstrap draws.

    `routing` and the lists in `fishers` (heterogeneity by kind and unit) have one entry per router,
    in the order of `paths`.
    """

    draws: Draws
    paths: list[str]
    routing: list[dict[str, Estimate]]
    fishers: dict[Kind, list[dict[str, Estimate]]]
    dead: list[DeadTest]
    loss: Estimate

    def over_routers(self) -> dict[str, Estimate]:
        """Run-level values of the routing metrics."""
        return over_routers(
            self.routing,
            self.paths,
            (*ROUTING_NAMES, *router_metric_functions()),
        )


def estimate_checkpoint(arrays: CheckpointArrays, settings: Settings) -> CheckpointEstimates:
    """Compute all estimates of one checkpoint.

    Args:
        arrays: its sums and samples.
        settings: the seed of the draws, and the Fisher kind and unit.
    """
    draws = make_draws(arrays.groups_S, settings.seed)
    dead = [
        _with_router_numbers(test, router)
        for test, router in zip(
            find_dead([r.selectable_sums for r in arrays.routers]), arrays.routers, strict=True
        )
    ]
    routing = []
    for router, test in zip(arrays.routers, dead, strict=True):
        found = routing_estimates(router.selectable_sums, draws, test)
        found |= {name: estimate(router) for name, estimate in router_metric_functions().items()}
        routing.append(found)
    no_loss = str(arrays.replay.get("no_loss") or NO_LOSS)
    kinds = sorted({kind for r in arrays.routers for kind in r.fishers} | {settings.named})
    fishers = {
        kind: [
            heterogeneity_estimates(r.selectable_fisher(kind), draws)
            if kind in r.fishers
            else dict.fromkeys(FISHER_NAMES, missing(HASHED if r.sums.hashed else no_loss))
            for r in arrays.routers
        ]
        for kind in kinds
    }
    loss = missing(no_loss)
    if arrays.loss_S is None:
        loss = missing("no loss pass was run: the Fisher kind needs none")
    elif arrays.loss_tokens_S.any():
        loss = ratio_of_sums(arrays.loss_S, arrays.loss_tokens_S, draws)
    paths = [r.path for r in arrays.routers]
    return CheckpointEstimates(draws, paths, routing, fishers, dead, loss)


def checkpoint_record(
    arrays: CheckpointArrays,
    probe: Probe,
    settings: Settings,
    *,
    step: int | None,
    path: str,
    fingerprint: str,
    progress: Mapping[str, float | None],
) -> CheckpointRecord:
    """The record of one checkpoint, without metrics that need a baseline or other checkpoints.

    Args:
        arrays: its sums and samples.
        probe: the probe, for the domains of its sequences.
        settings: how it was measured.
        step: its optimizer step; None if unknown.
        path: its path relative to the run.
        fingerprint: the fingerprint of its files.
        progress: step, tokens and fraction of training, as far as they are known.
    """
    found = estimate_checkpoint(arrays, settings)
    domains = _domains(arrays, probe)
    in_all = _dead_in_all(arrays, domains)
    layers = tuple(
        _layer(router, found, place, domains, in_all[place], settings)
        for place, router in enumerate(arrays.routers)
    )
    fisher: dict[str, dict[str, Metrics]] = {}
    for (kind, unit), by_router in found.fishers.items():
        over = over_routers(by_router, found.paths, FISHER_NAMES)
        fisher.setdefault(kind, {})[unit] = as_metrics(over)
    kind, unit = settings.named
    return CheckpointRecord(
        step=step,
        path=path,
        fingerprint=fingerprint,
        coverage=Coverage(arrays.routers_found, len(arrays.routers), dict(arrays.not_measured)),
        loss=found.loss.metric("loss"),
        metrics={**as_metrics(found.over_routers()), **fisher.get(kind, {}).get(unit, {})},
        layers=layers,
        fisher=fisher,
        progress=dict(progress),
        replay={**arrays.replay, "described": arrays.describe()},
        domain_loss=_domain_losses(arrays, domains, found.draws),
    )


def as_metrics(estimates: Estimates) -> dict[str, Any]:
    """Estimates as metric records, by the same names."""
    return {name: estimate.metric(name) for name, estimate in estimates.items()}


def _layer(
    router: RouterArrays,
    found: CheckpointEstimates,
    place: int,
    domains: Mapping[str, np.ndarray],
    dead_in_all: tuple[int, ...] | None,
    settings: Settings,
) -> LayerRecord:
    fisher: dict[str, dict[str, Metrics]] = {}
    for (kind, unit), by_router in found.fishers.items():
        fisher.setdefault(kind, {})[unit] = as_metrics(by_router[place])
    kind, unit = settings.named
    own = router.fishers.get((kind, unit))
    return LayerRecord(
        layer=router.layer,
        router=router.path,
        experts=router.experts,
        top_k=router.top_k,
        scoring=router.scoring,
        metrics={**as_metrics(found.routing[place]), **fisher.get(kind, {}).get(unit, {})},
        load=_to_plain(router.sums.load_E),
        mean_probability=_to_plain(router.sums.mean_probability_E),
        fisher_trace=None if own is None else _to_plain(own.trace_E),
        fisher=fisher,
        dead=found.dead[place].dead or (),
        dead_in_all_domains=dead_in_all,
        domain_load={
            name: tuple(float(v) for v in load_E)
            for name, chosen in domains.items()
            if (load_E := router.sums.subset(chosen).load_E) is not None
        },
        state="nonfinite" if router.sums.nonfinite_tokens else router.state,
        zero_rows=router.zero_rows,
        experts_nonfinite=router.experts_nonfinite,
        experts_zero=router.experts_zero,
        experts_identical=router.experts_identical,
        masked=router.masked,
    )


def _domains(arrays: CheckpointArrays, probe: Probe) -> dict[str, np.ndarray]:
    """The sequences of each domain; empty if the probe has fewer than two domains."""
    names = [s.domain for s in probe.sequences]
    known = sorted({n for n in names if n is not None})
    if len(known) < 2 or len(names) != len(arrays.groups_S):
        return {}
    return {name: np.flatnonzero([n == name for n in names]) for name in known}


def _domain_losses(
    arrays: CheckpointArrays, domains: Mapping[str, np.ndarray], draws: Draws
) -> Metrics:
    """The loss of each domain's sequences; empty without a loss pass or without domains."""
    if arrays.loss_S is None:
        return {}
    found = {}
    for name, chosen in domains.items():
        own_S = np.isin(np.arange(len(arrays.groups_S)), chosen)
        sums_S = np.where(own_S, arrays.loss_S, 0.0)
        counts_S = np.where(own_S, arrays.loss_tokens_S, 0)
        found[name] = ratio_of_sums(sums_S, counts_S, draws).metric("loss")
    return found


def _dead_in_all(
    arrays: CheckpointArrays, domains: Mapping[str, np.ndarray]
) -> list[tuple[int, ...] | None]:
    """For each router, the experts dead in every domain with enough tokens; None without one."""
    in_all: list[set[int] | None] = [None] * len(arrays.routers)
    for chosen in domains.values():
        tests = find_dead([r.selectable_sums.subset(chosen) for r in arrays.routers])
        for place, (router, own) in enumerate(zip(arrays.routers, tests, strict=True)):
            test = _with_router_numbers(own, router)
            if test.dead is not None:
                before = in_all[place]
                in_all[place] = set(test.dead) if before is None else before & set(test.dead)
    return [None if found is None else tuple(sorted(found)) for found in in_all]


def _with_router_numbers(test: DeadTest, router: RouterArrays) -> DeadTest:
    """A test over the experts that can be chosen, with expert numbers of the whole router."""
    if not router.off or not test.dead:
        return test
    open_E = np.setdiff1d(np.arange(router.experts), router.off)
    return dataclasses.replace(test, dead=tuple(int(open_E[e]) for e in test.dead))


def _to_plain(values_E: np.ndarray | None) -> tuple[float | None, ...] | None:
    """Plain Python numbers; None for a value that is not finite."""
    if values_E is None:
        return None
    return tuple(float(v) if np.isfinite(v) else None for v in values_E)
