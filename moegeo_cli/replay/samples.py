"""Put samples (of other tensors than token ids) into batches of equal shapes.

Legend: B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.probes import Sample


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """A batch of samples; `sequence_B` holds their indices in the probe.

    `targets` is (B) or (B, …), like the labels; None if the probe has none.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor | None
    sequence_B: torch.Tensor
    tokens: int
    positions: int
    flat: None = None  # there is no padding


def as_batch(
    own: np.ndarray | Sample, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """One sequence of token ids or one sample as a batch of one."""
    arrays = own.inputs if isinstance(own, Sample) else {"input_ids": own}
    batch = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(np.array(array)).to(device)[None]
        batch[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return batch


def make_sample_batches(
    samples: Sequence[Sample],
    plan: Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[SampleBatch]:
    """The batches of a plan, on the device, with floating-point inputs in the model's dtype.

    A planned batch whose samples differ in shape is split into one batch per shape.
    """
    for members in plan:
        forms: dict[tuple[object, ...], list[int]] = {}
        for s in members:
            shapes = [(name, a.shape) for name, a in sorted(samples[s].inputs.items())]
            labels = samples[s].labels
            form = (*shapes, None if labels is None else labels.shape)
            forms.setdefault(form, []).append(s)
        for same in forms.values():
            yield _batch(samples, same, device, dtype)


def _batch(
    samples: Sequence[Sample], members: list[int], device: torch.device, dtype: torch.dtype
) -> SampleBatch:
    inputs = {}
    for name in samples[members[0]].inputs:
        stacked = torch.from_numpy(np.stack([samples[s].inputs[name] for s in members]))
        kind = dtype if stacked.is_floating_point() else stacked.dtype
        inputs[name] = stacked.to(device=device, dtype=kind)
    labels = [samples[s].labels for s in members]
    known = [y for y in labels if y is not None]
    tokens = sum(samples[s].positions for s in members)
    return SampleBatch(
        inputs=inputs,
        targets=torch.from_numpy(np.stack(known)).to(device) if known else None,
        sequence_B=torch.tensor(members, device=device),
        tokens=tokens,
        positions=tokens,
    )
