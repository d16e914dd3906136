"""What `moegeo experts` holds beside a replay: inputs, products of Jacobians, pairs of experts.

Legend: G groups of sequences, E experts, B draws, T probe positions.
"""

from __future__ import annotations

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.commands.experts.metrics import PAIRS
from moegeo_cli.commands.experts.settings import KEPT_TOKENS, ExpertSettings
from moegeo_cli.geometry.resample import DRAWS

# For every pair of a layer's experts: arrays by group of sequences (numerators and denominators of
# alignments and of their null, distances and overlaps without each group, of inputs and outputs),
# and the numbers of its record with their text. For a part of the pairs: arrays by draw.
GROUP_ARRAYS, DRAW_ARRAYS, NUMBERS, NUMBER_BYTES = 8, 5, 15, 60
FLOAT32, FLOAT64 = 4, 8


def bytes_beside(
    settings: ExpertSettings, architecture: Architecture, groups: int, tokens: int
) -> int:
    """Bytes that the command holds beside what a pass holds.

    Args:
        settings: how experts are measured.
        architecture: how many experts each layer has, and how wide it is.
        groups: G.
        tokens: T.
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
