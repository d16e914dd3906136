"""Sketches: a few numbers per expert that preserve distances, so that no file is read twice.

A sketch sums an expert's weights, with random signs, into `DIMENSIONS` bins. The signs are the same
for every expert of every checkpoint. A sketch is linear: the difference of two sketches is the
sketch of the difference. Its squared norm estimates the squared Frobenius norm without bias. The
standard error of a distance is 1/√(2·DIMENSIONS), about 9%; for means over experts it is smaller.

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
_ROWS = 4096  # rows of a block; all blocks use the same signs, times signs of the block's own
_SEED = 20_261


def sketch(values: np.ndarray[Any, Any], role: str) -> np.ndarray[Any, Any]:
    """Sketch one weight of an expert. The sketch of an expert is the sum over its weights.

    Args:
        values: float32, any shape; the signs depend on an entry's position.
        role: what the weight is, the same for all experts; it seeds the signs.

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
    """Sketches as text: base64 of float32."""
    return base64.b64encode(np.asarray(sketches, dtype="<f4").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray[Any, Any]:
    """The sketches in a text from `pack`: shape (E, DIMENSIONS), float64."""
    raw = np.frombuffer(base64.b64decode(text), dtype="<f4")
    return raw.reshape(-1, DIMENSIONS).astype(np.float64)


def distances(sketches_ED: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Distance between every two sketches, shape (E, E).

    Differences are computed before squaring. A Gram matrix would lose small distances to rounding.
    """
    found = np.empty((len(sketches_ED), len(sketches_ED)))
    for place, row in enumerate(sketches_ED):
        found[place] = np.linalg.norm(sketches_ED - row, axis=1)
    return found


def mean_distance(sketches_ED: np.ndarray[Any, Any], norms_E: np.ndarray[Any, Any]) -> float | None:
    """Mean distance between two experts, relative to independent experts of the same norms.

    Args:
        sketches_ED: sketches of the experts, shape (E, DIMENSIONS).
        norms_E: Frobenius norms of the experts, shape (E,).

    Returns:
        1 for independent experts, 0 for equal experts; None if no two experts have a norm above 0.
    """
    scale_EE = np.sqrt(norms_E[:, None] ** 2 + norms_E[None, :] ** 2)
    above = np.triu(scale_EE > 0.0, 1)
    if not above.any():
        return None
    return float((distances(sketches_ED)[above] / scale_EE[above]).mean())


@functools.cache
def _block_signs() -> np.ndarray[Any, Any]:
    return _signs(np.random.default_rng(_SEED), (_ROWS, DIMENSIONS))


@functools.lru_cache(64)  # a few roles; all experts ask for the same
def _outer_signs(role: str, count: int) -> np.ndarray[Any, Any]:
    seed = int.from_bytes(hashlib.sha256(role.encode()).digest()[:8], "little")
    return _signs(np.random.default_rng(seed), (count, DIMENSIONS))


def _signs(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    bits = generator.integers(0, 2, shape, dtype=np.int8)
    return (bits * 2 - 1).astype(np.float32)
