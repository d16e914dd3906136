"""Routed tokens of small traces, and the overlap of two tokens as it is defined."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moegeo_cli.commands.routing.tokens import RoutedTokens, gather_routed
from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.probes import Probe
from moegeo_cli.replay.plan import RouterTrace
from tests.traces import LENGTHS, architecture_of, probe_of, replay_of, sequences_of, trace_of

GROUPS_S = group_sequences(len(LENGTHS))
DRAWS = make_draws(GROUPS_S)
TOKENS = sum(LENGTHS)
DOMAINS = ("code", "prose", "code", "prose", None, "code")
LABELS_S = np.array([0, 1, 0, 1, -1, 0])
SEQUENCE_T = sequences_of()


def gather(
    trace: RouterTrace,
    rows_N: np.ndarray | None = None,
    probe: Probe | None = None,
    **about: Any,
) -> RoutedTokens | str:
    """The tokens of a trace, with the inputs of these rows."""
    rows = np.arange(TOKENS) if rows_N is None else rows_N
    outcome = replay_of([trace])
    known = probe or probe_of(domains=DOMAINS)
    return gather_routed(trace, outcome, rows, known, GROUPS_S, architecture_of(**about))


def tokens_of(seed: int = 1, layer: int = 0, **about: Any) -> RoutedTokens:
    """The tokens of a drawn trace, a slot of one of them empty, a whole token of another."""
    trace = trace_of(seed, layer)
    assert trace.selected_TK is not None
    trace.selected_TK[3, 1] = -1
    trace.selected_TK[8] = -1
    found = gather(trace, **about)
    assert isinstance(found, RoutedTokens), found
    return found


def chosen_of(tokens: RoutedTokens) -> list[set[int]]:
    """The experts of each token."""
    return [{int(e) for e in row if e >= 0} for row in tokens.usage.selected_TK]


def common(a: set[int], b: set[int]) -> float:
    """Share of the experts that two tokens have in common."""
    return len(a & b) / float(np.sqrt(len(a) * len(b)))


def mean_overlap(tokens: RoutedTokens, keep: Any) -> float:
    """Mean over pairs of different tokens that `keep` says yes to."""
    chosen = chosen_of(tokens)
    values = [
        common(chosen[t], chosen[s])
        for t in range(len(chosen))
        for s in range(len(chosen))
        if t != s and chosen[t] and chosen[s] and keep(t, s)
    ]
    return float(np.mean(values))


def above(value: float, chance: float) -> float:
    """What stands above chance."""
    return (value - chance) / (1.0 - chance)


def replaced(tokens: RoutedTokens, **changes: Any) -> RoutedTokens:
    """The same tokens with other fields."""
    return dataclasses.replace(tokens, **changes)
