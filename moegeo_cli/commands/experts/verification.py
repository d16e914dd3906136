"""Tests candidates: merges or prunes them in memory and measures the change of the probe's loss.

The ranking is compared with the same number of experts chosen at random, by overlap of inputs, and
by cosine of weights. No expert is in two merges.

Legend: S sequences, B draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from moegeo_cli.commands.experts.candidates import (
    Pair,
    Single,
    rank_pairs,
    rank_singles,
    rank_singles_by,
)
from moegeo_cli.commands.experts.layers import MeasuredLayer
from moegeo_cli.commands.experts.metrics import metric
from moegeo_cli.commands.experts.record import Action, Choice, Trial, Verification
from moegeo_cli.expert_functions.functions import Experts
from moegeo_cli.expert_functions.surgery import merge, restoring_weights, silence
from moegeo_cli.geometry.estimates import ratio_of_sums
from moegeo_cli.geometry.resample import Draws, Estimate
from moegeo_cli.records import Metric, layer_name

C = TypeVar("C", Pair, Single)
RANDOM_TRIALS = 5
NATS = "nats per token"


def verify(
    layers: Sequence[MeasuredLayer],
    losses: Callable[[], np.ndarray],
    loss_tokens_S: np.ndarray,
    draws: Draws,
    count: int,
    seed: int,
) -> Verification:
    """Measure the loss after the top merges, after the top prunings, and after other choices.

    Args:
        layers: the measured layers; only those whose weights moegeo can change take part.
        losses: returns the current model's summed loss of each sequence, shape (S,).
        loss_tokens_S: number of loss terms of each sequence.
        draws: the bootstrap draws, for paired intervals.
        count: number of merges, and of prunings.
        seed: random seed of the random choices.
    """
    able = [layer for layer in layers if layer.experts is not None and layer.experts.layout]
    before_S = losses()
    notes = []
    if len(able) < len(layers):
        notes.append(f"{len(layers) - len(able)} layers left out: moegeo cannot "
                     "change the weights of their experts")  # fmt: skip
    trials: list[Trial] = []

    def change(apply: Callable[[], None], touched: Sequence[tuple[int, int]]) -> Estimate:
        with restoring_weights([(_experts_of(able[place]), e) for place, e in touched]):
            apply()
            return ratio_of_sums(losses() - before_S, loss_tokens_S, draws)

    generator = np.random.default_rng(seed)
    pairs: dict[Choice, list[list[Pair]]] = {
        "ranking": [_disjoint(rank_pairs(able, "alignment"), count)],
        "overlap": [_disjoint(rank_pairs(able, "overlap"), count)],
        "weight cosine": [_disjoint(rank_pairs(able, "weight cosine"), count)],
        "random": [_disjoint(_shuffled(_all_pairs(able), generator), count)
                   for _ in range(RANDOM_TRIALS)],
    }  # fmt: skip
    for choice, sets in pairs.items():
        found = [change(_merging(able, chosen), _members(chosen)) for chosen in sets if chosen]
        names = tuple(_name(able, p, f"{a}+{b}") for p, a, b in (sets[0] if sets else []))
        trials += _trial("merge", choice, names, found)
    singles: dict[Choice, list[list[Single]]] = {
        "ranking": [rank_singles(able)[:count]],
        "overlap": [rank_singles_by(able, "overlap")[:count]],
        "weight cosine": [rank_singles_by(able, "weight cosine")[:count]],
        "random": [_shuffled(_all_singles(able), generator)[:count] for _ in range(RANDOM_TRIALS)],
    }
    for choice, chosen_sets in singles.items():
        found = [change(_silencing(able, chosen), chosen) for chosen in chosen_sets if chosen]
        names = tuple(_name(able, p, str(e)) for p, e in (chosen_sets[0] if chosen_sets else []))
        trials += _trial("prune", choice, names, found)
    total = float(loss_tokens_S.sum())
    value = float(before_S.sum()) / total
    return Verification(
        count=count,
        loss=Metric(value, n=int(total), unit=NATS, higher_is_better=False),
        trials=tuple(trials),
        notes=tuple(notes),
    )


def _experts_of(layer: MeasuredLayer) -> Experts:
    assert layer.experts is not None
    return layer.experts


def _merging(layers: Sequence[MeasuredLayer], chosen: Sequence[Pair]) -> Callable[[], None]:
    def apply() -> None:
        for place, a, b in chosen:
            mass_E = layers[place].mass_E
            total = float(mass_E[a] + mass_E[b])
            share = float(mass_E[a]) / total if total > 0 else 0.5
            merge(_experts_of(layers[place]), a, b, share)

    return apply


def _silencing(layers: Sequence[MeasuredLayer], chosen: Sequence[Single]) -> Callable[[], None]:
    def apply() -> None:
        for place, e in chosen:
            silence(_experts_of(layers[place]), e)

    return apply


def _disjoint(ranked: Sequence[Pair], count: int) -> list[Pair]:
    """The first `count` pairs that have no expert in common."""
    used: set[Single] = set()
    chosen: list[Pair] = []
    for place, a, b in ranked:
        if len(chosen) < count and not used & {(place, a), (place, b)}:
            chosen.append((place, a, b))
            used |= {(place, a), (place, b)}
    return chosen


def _members(chosen: Sequence[Pair]) -> list[Single]:
    return [(place, e) for place, a, b in chosen for e in (a, b)]


def _all_pairs(layers: Sequence[MeasuredLayer]) -> list[Pair]:
    return [
        (place, a, b)
        for place, layer in enumerate(layers)
        for a in range(layer.record.experts)
        for b in range(a + 1, layer.record.experts)
    ]


def _all_singles(layers: Sequence[MeasuredLayer]) -> list[Single]:
    return [(p, e) for p, layer in enumerate(layers) for e in range(layer.record.experts)]


def _shuffled(entries: list[C], generator: np.random.Generator) -> list[C]:
    return [entries[i] for i in generator.permutation(len(entries))]


def _name(layers: Sequence[MeasuredLayer], place: int, experts: str) -> str:
    record = layers[place].record
    return f"layer {layer_name(record.layer, record.router)}: {experts}"


def _trial(
    action: Action, choice: Choice, names: tuple[str, ...], found: list[Estimate]
) -> list[Trial]:
    """The record of a choice. Several random choices are averaged, and their draws pooled."""
    if not found:
        return []
    lost = [f for f in found if f.value is None]
    if lost:
        return [Trial(action, choice, names, metric(lost[0], NATS))]
    mean = Estimate(
        float(np.mean([f.value for f in found])),
        None if any(f.draws_B is None for f in found)
        else np.concatenate([f.draws_B for f in found if f.draws_B is not None]),
        found[0].n,
    )  # fmt: skip
    if len(found) > 1:
        names = (f"{len(found)} draws of {len(names)}",)
    return [Trial(action, choice, names, metric(mean, NATS))]
