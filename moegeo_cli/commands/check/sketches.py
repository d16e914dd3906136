"""Sketches: a few numbers per expert that preserve distances, so that no file is read twice.

A sketch is a random signed sum of an expert's weights in `DIMENSIONS` bins, the same signs for
every expert of every checkpoint. It is linear, so the difference of two sketches is the sketch of
the difference, and its squared norm estimates the squared Frobenius norm without bias; a distance
is off by 1/√(2·DIMENSIONS), about 9%, and means over experts by less.

Source: Charikar, Chen and Farach-Colton (2002), count sketch.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

DIMENSIONS = 64
_ROWS = 4096  # of a block whose signs are reused; each block gets signs of its own on top
_SEED = 20_261


def sketch(values: np.ndarray[Any, Any], role: str) -> np.ndarray[Any, Any]:
    """Sketch of one weight of an expert. The sketches of its weights add up to the expert's.

    Args:
        values: float32, any shape; entries are told apart by their place.
        role: what the weight is, the same for all experts.

    Returns:
        Shape (DIMENSIONS,), float64.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    block = _ROWS * DIMENSIONS
    count = -(-flat.size // block)
    outer = _outer_signs(role, count)
    total = np.zeros(DIMENSIONS)
    whole = flat.size // block
    signs = _block_signs()
    if whole:
        blocks = flat[: whole * block].reshape(whole, _ROWS, DIMENSIONS)
        total += (np.einsum("cij,ij->cj", blocks, signs) * outer[:whole]).sum(0, dtype=np.float64)
    rest = flat[whole * block :]
    if rest.size:
        rows = -(-rest.size // DIMENSIONS)
        padded = np.zeros(rows * DIMENSIONS, np.float32)
        padded[: rest.size] = rest
        part = np.einsum("ij,ij->j", padded.reshape(rows, DIMENSIONS), signs[:rows])
        total += part * outer[whole]
    return total


def pack(sketches: Sequence[np.ndarray[Any, Any]]) -> str:
    """Sketches as text, float32."""
    return base64.b64encode(np.asarray(sketches, dtype="<f4").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray[Any, Any]:
    """The sketches, shape (E, DIMENSIONS), float64."""
    raw = np.frombuffer(base64.b64decode(text), dtype="<f4")
    return raw.reshape(-1, DIMENSIONS).astype(np.float64)


def distances(sketches_ED: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Distance of each two sketches, shape (E, E).

    Differences are taken before they are squared: close ones would vanish in a Gram matrix.
    """
    found = np.empty((len(sketches_ED), len(sketches_ED)))
    for place, row in enumerate(sketches_ED):
        found[place] = np.linalg.norm(sketches_ED - row, axis=1)
    return found


def mean_distance(sketches_ED: np.ndarray[Any, Any], norms_E: np.ndarray[Any, Any]) -> float | None:
    """Mean distance of two experts, relative to independent experts of the same norms.

    Args:
        sketches_ED: shape (E, DIMENSIONS).
        norms_E: Frobenius norms of what they are of.

    Returns:
        1 for independent experts, 0 for equal ones; None without a pair that is not zero.
    """
    scale_EE = np.sqrt(norms_E[:, None] ** 2 + norms_E[None, :] ** 2)
    above = np.triu(scale_EE > 0.0, 1)
    if not above.any():
        return None
    return float((distances(sketches_ED)[above] / scale_EE[above]).mean())


@functools.cache
def _block_signs() -> np.ndarray[Any, Any]:
    return _signs(np.random.default_rng(_SEED), (_ROWS, DIMENSIONS))


def _outer_signs(role: str, count: int) -> np.ndarray[Any, Any]:
    seed = int.from_bytes(hashlib.sha256(role.encode()).digest()[:8], "little")
    return _signs(np.random.default_rng(seed), (count, DIMENSIONS))


def _signs(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    bits = generator.integers(0, 2, shape, dtype=np.int8)
    return (bits * 2 - 1).astype(np.float32)
