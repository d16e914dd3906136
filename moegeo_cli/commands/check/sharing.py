"""Counts what two checkpoints have in common bit for bit: routers, experts, attention, others."""

from __future__ import annotations

from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.records.comparison import SharedBytes, SharedLayer


def share(a: CheckpointSums, b: CheckpointSums) -> SharedBytes:
    """Compare the digests of two checkpoints, for tensors with the same name.

    Args:
        a: the first checkpoint.
        b: the second; `quick` must be the same for both.
    """
    others = {layer.router: layer for layer in b.layers}
    layers = tuple(_layer(own, others[own.router]) for own in a.layers if own.router in others)
    equal, of = {"attention": 0, "other": 0}, {"attention": 0, "other": 0}
    for name, (kind, _, digest) in a.rest.items():
        found = b.rest.get(name)
        if found is not None:
            of[kind] += 1
            equal[kind] += digest == found[2]
    return SharedBytes(
        routers=sum(x.router_equal for x in layers),
        routers_of=len(layers),
        experts=sum(len(x.experts) for x in layers),
        experts_of=sum(x.experts_of for x in layers),
        attention=equal["attention"],
        attention_of=of["attention"],
        others=equal["other"],
        others_of=of["other"],
        layers=layers,
    )


def _layer(a: LayerSums, b: LayerSums) -> SharedLayer:
    pairs = list(zip(a.expert_digests or (), b.expert_digests or (), strict=False))
    return SharedLayer(
        layer=a.layer,
        router=a.router,
        router_equal=a.router_digest == b.router_digest,
        bias_equal=None
        if a.bias_digest is None or b.bias_digest is None
        else a.bias_digest == b.bias_digest,
        experts=tuple(e for e, (one, other) in enumerate(pairs) if one and one == other),
        experts_of=sum(bool(one and other) for one, other in pairs),
    )
