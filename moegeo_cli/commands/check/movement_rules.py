"""Rules about changes between checkpoints: weights that are frozen, or lost at a resume.

All of them compare digests of stored bytes, so their findings are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from moegeo_cli.commands.check.history import Entry, Item, Past
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.words import by_layer, joined, layers_words, numbers
from moegeo_cli.records import Evidence, Metric, Threshold
from moegeo_cli.verdict.rules import Found, Outcome, Skipped

EXACT = Threshold(None, "exact")
ALONE = Skipped("needs two checkpoints of a run")
NOT_READ = Skipped("the experts' weights were not read")


def router_frozen(past: Past) -> Outcome:
    """Routers that are equal bit for bit since an earlier checkpoint, while other weights move."""
    if past.is_first:
        return ALONE
    hashed = set(past.now.sums.facts.get("hash_layers") or ())
    learned = [x for x in past.layers if x.layer not in hashed]
    unchanged = {
        x.router: e for x in learned if (e := past.since(("router", x.router))) is not None
    }
    if not unchanged or not past.moved:
        return None
    found = [x for x in learned if x.router in unchanged]
    return _frozen(
        past,
        f"the router of {_since(found, learned, lambda x: unchanged[x.router])}",
        found,
        "It is not in the optimizer, it gets no gradient, or it was frozen on purpose",
        _count("routers_frozen", len(found)),
    )


def experts_frozen(past: Past) -> Outcome:
    """Experts that are equal bit for bit since an earlier checkpoint, while other weights move."""
    if past.is_first:
        return ALONE
    if not _were_read(past.layers):
        return NOT_READ
    if not past.moved:
        return None
    since: dict[str, dict[int, Entry]] = {}
    for layer in past.layers:
        for expert in _active_experts(layer):
            entry = past.since(("expert", layer.router, expert))
            if entry is not None:
                since.setdefault(layer.router, {})[expert] = entry
    if not since:
        return None
    found = [x for x in past.layers if x.router in since]
    whole = [x for x in found if len(since[x.router]) == len(_active_experts(x))]
    words = []
    if whole:
        words.append(
            f"all experts of "
            f"{_since(whole, past.layers, lambda x: _latest(since[x.router].values()))}"
        )
    partly = {x.router: sorted(since[x.router]) for x in found if x not in whole}
    if partly:
        first = _latest(e for router in partly for e in since[router].values())
        words.append(f"{by_layer(partly, past.layers)} since {first.name}")
    causes = "The optimizer does not hold them, or they are frozen on purpose"
    if partly:
        causes += ". Without weight decay, an expert that no token reached does not change either"
    count = sum(map(len, since.values()))
    return _frozen(past, " and ".join(words), found, causes, _count("experts_frozen", count))


def router_reset(past: Past) -> Outcome:
    """Routers that have the bytes of an earlier checkpoint again, after they had moved."""
    return _reset(past, past.layers, lambda x: [("router", x.router)], "routers", "routers_reset")


def experts_reset(past: Past) -> Outcome:
    """Experts that have the bytes of an earlier checkpoint again, after they had moved."""
    if not _were_read(past.layers):
        return NOT_READ

    def experts_of(layer: LayerSums) -> list[Item]:
        return [("expert", layer.router, e) for e in _active_experts(layer)]

    return _reset(past, past.layers, experts_of, "experts", "experts_reset")


def _frozen(
    past: Past,
    what: str,
    found: Sequence[LayerSums],
    causes: str,
    evidence: tuple[Evidence, ...],
) -> Found:
    on_purpose = past.now.sums.frozen_by
    why = f"The config asks for it: {on_purpose[0]}" if on_purpose else causes
    return Found(
        "info" if on_purpose else "watch",
        f"equal bit for bit while other weights move: {what}. {why}",
        numbers(found),
        evidence,
        EXACT,
    )


def _reset(
    past: Past,
    layers: Sequence[LayerSums],
    parts: Callable[[LayerSums], list[Item]],
    what: str,
    name: str,
) -> Outcome:
    if past.is_first:
        return ALONE
    if past.copy_of is not None:
        return None  # the whole checkpoint is a copy of an earlier one: a note reports that
    back: dict[str, dict[Item, Entry]] = {}
    for layer in layers:
        for part in parts(layer):
            entry = past.back(part)
            if entry is not None:
                back.setdefault(layer.router, {})[part] = entry
    if not back:
        return None
    by_source: dict[str, list[LayerSums]] = {}
    partly: dict[str, list[int]] = {}
    for layer in layers:
        returned = back.get(layer.router, {})
        if returned and len(returned) < len(parts(layer)):
            partly[layer.router] = [int(str(part[2])) for part in returned]
        for source in sorted({e.name for e in returned.values()}):
            by_source.setdefault(source, []).append(layer)
    where = joined([f"{layers_words(x, layers)} to {name}" for name, x in by_source.items()])
    some = f" ({by_layer(partly, layers)})" if partly else ""
    return Found(
        "failing",
        f"{what} went back to the bytes of an earlier checkpoint after they had changed: "
        f"{where}{some}. "
        "A resume lost them, or another file was loaded",
        numbers(x for x in layers if x.router in back),
        _count(name, sum(map(len, back.values()))),
        EXACT,
    )


def _count(name: str, count: int) -> tuple[Evidence, ...]:
    return (Evidence(name, Metric(float(count))),)


def _since(
    found: Sequence[LayerSums], of: Sequence[LayerSums], entry_of: Callable[[LayerSums], Entry]
) -> str:
    """Layers in words, with the checkpoint since which they are equal: "layers 0-3 since step 5".

    Args:
        found: the layers to name.
        of: all layers of the checkpoint.
        entry_of: returns the checkpoint since which a layer is equal.
    """
    groups: dict[str, list[LayerSums]] = {}
    for layer in found:
        groups.setdefault(entry_of(layer).name, []).append(layer)
    return joined([f"{layers_words(layers, of)} since {name}" for name, layers in groups.items()])


def _latest(entries: Iterable[Entry]) -> Entry:
    return max(entries, key=lambda e: -1 if e.step is None else e.step)


def _active_experts(layer: LayerSums) -> list[int]:
    """Experts that were read and can move: not masked, not all zeros."""
    off = {*layer.expert_zero, *layer.masked}
    return [e for e, digest in enumerate(layer.expert_digests or ()) if digest and e not in off]


def _were_read(layers: Sequence[LayerSums]) -> bool:
    return any(x.expert_digests for x in layers)
