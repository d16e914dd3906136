"""The rule about experts that look untrained while other weights do not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from moegeo_cli.commands.check.history import Past
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.movement_rules import NOT_READ
from moegeo_cli.commands.check.row_alignment import NAME
from moegeo_cli.commands.check.words import by_layer, joined, layers_words, numbers
from moegeo_cli.geometry.fresh import combine_scores
from moegeo_cli.records import Evidence, Metric
from moegeo_cli.verdict.rules import Found, Outcome, Skipped

LIMIT = "experts-untrained"
# Random experts are reported only if other weights are clearly not random: the pooled score of
# another layer's experts or of attention is at least CLEAR or, for single experts, the median
# expert of the layer is at least CLEAR_EXPERT. docs/results/check.md has the error rates.
CLEAR, CLEAR_EXPERT = 40.0, 12.0
# Before this share of training, experts that few tokens reach look untrained too.
EARLY = 0.2
WHY = "a converter or a resume left them out, or they get no gradient"


def experts_untrained(past: Past) -> Outcome:
    """Experts whose rows point in random directions while other weights' rows do not."""
    scores = {x.router: _scores(x) for x in past.layers}
    scores = {router: own for router, own in scores.items() if own}
    if not scores:
        return NOT_READ
    limit = past.limits[LIMIT]
    pooled = {router: combine_scores(list(own.values())) or 0.0 for router, own in scores.items()}
    whole = [x for x in past.layers if x.router in pooled and pooled[x.router] < limit.value]
    single = {
        router: tuple(e for e, score in own.items() if score < limit.value)
        for router, own in scores.items()
        if pooled[router] >= limit.value and statistics.median(own.values()) >= CLEAR_EXPERT
    }
    single = {router: experts for router, experts in single.items() if experts}
    if whole:
        clearest = max([*pooled.values(), past.now.sums.alignment or 0.0])
        if clearest < CLEAR:
            whole = []
            if not single:
                return Skipped(
                    "no weights differ clearly from random ones: fresh experts would not stand out"
                )
    if not whole and not single:
        return None
    found = [x for x in past.layers if x in whole or x.router in single]
    places = [f"all experts of {layers_words(whole, past.layers)}"] if whole else []
    places += [by_layer(single, past.layers)] if single else []
    fraction = past.now.sums.fraction
    starting = (past.now.step == 0 or past.now.sums.fresh is True) and past.is_first
    early = starting or (fraction is not None and fraction <= EARLY)
    why = "this early in training, experts that few tokens reached look the same" if early else WHY
    lowest = min(
        [pooled[x.router] for x in whole]
        + [scores[router][e] for router, experts in single.items() for e in experts]
    )
    return Found(
        "info" if early else "watch",
        f"{joined(places)} look untrained, while other weights do not: {why}",
        numbers(found),
        (Evidence("row_alignment", Metric(lowest, unit="standard deviations", null_value=0.0)),),
        limit.threshold,
    )


def _scores(layer: LayerSums) -> Mapping[int, float]:
    """Score of each expert that is neither damaged nor masked."""
    own = (layer.statistics.get(NAME) or {}).get("expert", ())
    lost = {*layer.expert_nonfinite, *layer.expert_zero, *layer.masked}
    return {e: score for e, score in enumerate(own) if score is not None and e not in lost}
