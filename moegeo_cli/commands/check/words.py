"""Lists of layers and experts in words, for the messages of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.records import layer_name

SHOWN_EXPERTS, SHOWN_LAYERS = 6, 4


def place(layer: LayerSums) -> str:
    """The name of a layer: its number, or the router's path if it has no number."""
    return layer.router if layer.layer is None else layer_name(layer.layer, layer.router)


def numbers(layers: Iterable[LayerSums]) -> tuple[int, ...]:
    """The sorted numbers of layers, each once."""
    return tuple(sorted({x.layer for x in layers if x.layer is not None}))


def layers_words(layers: Sequence[LayerSums], of: Sequence[LayerSums]) -> str:
    """Layers in words: "every layer (0-3)", "layer 3", "layers 0-3 and 7".

    Args:
        layers: the layers to name.
        of: all layers of the checkpoint.
    """
    if len(layers) == len(of) and len(of) > 1:
        return f"every layer ({spans([place(x) for x in layers])})"
    return f"{'layer' if len(layers) == 1 else 'layers'} {spans([place(x) for x in layers])}"


def spans(names: Sequence[str]) -> str:
    """Names with runs of three numbers or more joined: "0-3, 7 and 8"."""
    found: list[list[str]] = []
    for name in names:
        last = found[-1][-1] if found else ""
        if name.isdecimal() and last.isdecimal() and int(name) == int(last) + 1:
            found[-1].append(name)
        else:
            found.append([name])
    return joined([word for run in found for word in _span(run)])


def experts_words(experts: Sequence[int]) -> str:
    """Experts in words: "expert 3", "experts 1, 2", "experts 1, 2, 3, 4, 5, 6 and 4 more"."""
    shown = [str(e) for e in experts[:SHOWN_EXPERTS]]
    rest = len(experts) - len(shown)
    words = ", ".join(shown) + (f" and {rest} more" if rest else "")
    return f"{'expert' if len(experts) == 1 else 'experts'} {words}"


def by_layer(found: Mapping[str, Sequence[int]], layers: Sequence[LayerSums]) -> str:
    """Experts by layer: "experts 1, 2 in layer 0; expert 4 in layer 3; and in 2 more layers"."""
    words = [
        f"{experts_words(found[x.router])} in layer {place(x)}"
        for x in layers
        if found.get(x.router)
    ]
    rest = len(words) - SHOWN_LAYERS
    more = [f"and in {rest} more layer{'s' if rest > 1 else ''}"] if rest > 0 else []
    return "; ".join([*words[:SHOWN_LAYERS], *more])


def joined(words: Sequence[str]) -> str:
    """Words joined by commas and a last "and"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _span(run: Sequence[str]) -> Sequence[str]:
    return run if len(run) < 3 else [f"{run[0]}-{run[-1]}"]
