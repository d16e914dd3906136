"""Count true and false findings of experts-untrained, on replaced and on trained experts.

    python -m benchmarks.untrained [--work DIR]

Reads every checkpoint of the sample runs, and of the ordinary trainings where
`python -m benchmarks.ordinary run --work DIR` has left them. Each is judged as it stands. Then
fresh experts take the place of trained ones: of one layer, of every layer, and of one expert,
drawn by each scheme. Only the experts' statistics change: they are computed by the code that
`moegeo check` runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums, sum_checkpoint
from moegeo_cli.commands.check.history import Entry, Past, Story
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.reading import MoELayer, read_layers
from moegeo_cli.commands.check.row_alignment import NAME, RowAlignment
from moegeo_cli.commands.check.untrained_rules import EARLY, experts_untrained
from moegeo_cli.verdict.rules import Found
from moegeo_cli.verdict.thresholds import load_thresholds

SAMPLES = Path(__file__).parents[1] / "sample_checkpoints"
FROM = 0.05  # of training: untouched checkpoints before it are not counted
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SCHEMES: dict[str, Draw] = {
    "normal 0.02": lambda rng, shape: rng.normal(0.0, 0.02, shape),
    "normal 0.02, cut at 2": lambda rng, shape: np.clip(rng.normal(0.0, 0.02, shape), -0.04, 0.04),
    "uniform by width": lambda rng, shape: rng.uniform(-1.0, 1.0, shape) / shape[-1] ** 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.untrained")
    parser.add_argument("--work", type=Path, help="folder of the ordinary trainings")
    options = parser.parse_args()
    untouched: Counter[str] = Counter()
    replaced: Counter[tuple[str, str, bool]] = Counter()
    for path in (*sorted(SAMPLES.iterdir()), *_ordinary(options.work)):
        if not any(path.glob("checkpoint-*/config.json")):
            continue
        for checkpoint in open_run(path).checkpoints:
            sums = sum_checkpoint(checkpoint, quick=False)
            if sums.fraction is None or sums.fraction < FROM:
                continue
            late = sums.fraction > EARLY
            untouched[
                f"{_judge(checkpoint, sums)}, {'after' if late else 'up to'} {EARLY:.0%}"
            ] += 1
            for name, scheme, changed, layers in _replace(checkpoint, sums):
                outcome = experts_untrained(_past(checkpoint, changed))
                found = isinstance(outcome, Found) and set(layers) <= set(outcome.layers)
                replaced[name, scheme, found] += 1
    print("untouched checkpoints:", dict(sorted(untouched.items())))
    for name, scheme in sorted({(n, s) for n, s, _ in replaced}):
        found, missed = replaced[name, scheme, True], replaced[name, scheme, False]
        print(f"{name:18} {scheme:24} found {found} of {found + missed}")


def _ordinary(work: Path | None) -> list[Path]:
    return [] if work is None else sorted(p.parent for p in work.glob("*/final.json"))


def _past(checkpoint: Checkpoint, sums: CheckpointSums) -> Past:
    return Past(Story([Entry(checkpoint.step, "", sums)]), 0, load_thresholds())


def _judge(checkpoint: Checkpoint, sums: CheckpointSums) -> str:
    outcome = experts_untrained(_past(checkpoint, sums))
    return outcome.severity if isinstance(outcome, Found) else "silent"


def _replace(
    checkpoint: Checkpoint, sums: CheckpointSums
) -> Iterator[tuple[str, str, CheckpointSums, list[int | None]]]:
    """Each replacement: its name, how it was drawn, the sums with it, the layers that it is in."""
    layers = list(_layers(checkpoint))
    generator = np.random.default_rng(checkpoint.step or 0)
    for scheme, draw in SCHEMES.items():
        fresh = [_draw(layer, draw, generator) for layer in layers]
        for place, layer in enumerate(sums.layers):
            yield "one layer", scheme, _with(sums, {place: fresh[place]}), [layer.layer]
            own = layer.statistics[NAME]["expert"]
            expert = int(generator.integers(len(own)))
            one = [fresh[place][e] if e == expert else score for e, score in enumerate(own)]
            yield "one expert", scheme, _with(sums, {place: one}), [layer.layer]
        every = dict(enumerate(fresh))
        yield "every layer", scheme, _with(sums, every), [x.layer for x in sums.layers]


def _layers(checkpoint: Checkpoint) -> Iterator[MoELayer]:
    index, architecture = checkpoint.weights, checkpoint.config_architecture
    return read_layers(index, find_router_tensors(index, architecture), architecture)


def _draw(layer: MoELayer, draw: Draw, generator: np.random.Generator) -> list[float | None]:
    statistic = RowAlignment(layer)
    for piece in layer.read_experts():
        if piece.values is not None and piece.is_matrix:
            values = draw(generator, piece.values.shape).astype(np.float32)
            statistic.add(dataclasses.replace(piece, values=values))
    scores: list[float | None] = statistic.result()["expert"]
    return scores


def _with(sums: CheckpointSums, scores: dict[int, list[float | None]]) -> CheckpointSums:
    def change(place: int, layer: LayerSums) -> LayerSums:
        if place not in scores:
            return layer
        return dataclasses.replace(
            layer, statistics={**layer.statistics, NAME: {"expert": scores[place]}}
        )

    layers = tuple(change(place, layer) for place, layer in enumerate(sums.layers))
    return dataclasses.replace(sums, layers=layers)


if __name__ == "__main__":
    main()
