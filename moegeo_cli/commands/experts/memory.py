"""Memory of `moegeo experts` beyond a replay: inputs, products of Jacobians, pairs of experts.

Legend: G groups of sequences, E experts, B draws, T probe positions.
"""

from __future__ import annotations

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.commands.experts.metrics import PAIRS
from moegeo_cli.commands.experts.settings import KEPT_TOKENS, ExpertSettings
from moegeo_cli.geometry.resample import DRAWS

# GROUP_ARRAYS: per pair of experts, arrays by group of sequences (numerators and denominators of
# alignments and of their null; leave-one-out distances and overlaps of inputs and outputs).
# NUMBERS, NUMBER_BYTES: per pair, numbers in the record, and bytes of each with its text.
# DRAW_ARRAYS: arrays by draw, for the part of the pairs that is processed at a time.
GROUP_ARRAYS, DRAW_ARRAYS, NUMBERS, NUMBER_BYTES = 8, 5, 15, 60
FLOAT32, FLOAT64 = 4, 8


def bytes_beside(
    settings: ExpertSettings, architecture: Architecture, groups: int, tokens: int
) -> int:
    """Bytes that the command needs in addition to a replay.

    Args:
        settings: how experts are measured.
        architecture: gives the number of experts of each layer, and its width.
        groups: number of groups of sequences (G).
        tokens: number of probe positions (T).
    """
    layers = settings.layers or architecture.moe_layers or range(architecture.layers or 1)
    inputs = settings.kept_bytes
    if architecture.hidden is not None:
        whole = FLOAT32 * architecture.hidden * len(layers) * min(KEPT_TOKENS, tokens)
        inputs = min(inputs, whole)
    pairs = [architecture.experts_in(layer) ** 2 for layer in layers]
    sums = FLOAT64 * (GROUP_ARRAYS * groups * max(pairs) + DRAW_ARRAYS * DRAWS * PAIRS)
    products = 2 * (settings.buffer_bytes or 0)
    return inputs + products + sums + NUMBER_BYTES * NUMBERS * sum(pairs)
