"""Unigram loss: the loss of a model that knows label frequencies and ignores the context.

Legend: N labels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moegeo_cli.probes.dataset import IGNORED_LABEL, Probe, Sample, Sequence


def unigram_losses(probe: Probe) -> tuple[float | None, dict[str, float]]:
    """The unigram loss of a probe and of each of its domains, in nats per loss token.

    It is the entropy of the label frequencies with the Miller-Madow correction for few labels,
    (distinct - 1) / 2N. A trained model has a lower loss on text that it models.

    Source: Miller (1955), "Note on the bias of information estimates".

    Args:
        probe: the probe.

    Returns:
        The unigram loss of the whole probe (None if it has no label), and of each domain.
    """
    by_domain: dict[str, list[np.ndarray]] = {}
    labels = []
    for sequence in probe.sequences:
        own_N = _labels(sequence)
        labels.append(own_N)
        if sequence.domain is not None:
            by_domain.setdefault(sequence.domain, []).append(own_N)
    found = {name: _entropy(own) for name, own in sorted(by_domain.items())}
    return _entropy(labels), {name: value for name, value in found.items() if value is not None}


def _labels(sequence: Sequence | Sample) -> np.ndarray:
    """The labels that count towards the loss."""
    if isinstance(sequence, Sample):
        labels = sequence.labels
        given = np.zeros(0, np.int64) if labels is None else np.asarray(labels).reshape(-1)
    else:
        given = (sequence.input_ids if sequence.labels is None else sequence.labels)[1:]
    return np.asarray(given[given != IGNORED_LABEL])


def _entropy(labels: Iterable[np.ndarray]) -> float | None:
    all_N = np.concatenate([np.zeros(0, np.int64), *labels])
    if not len(all_N):
        return None
    counts = np.unique(all_N, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * len(all_N)))
