"""Which row of a router an expert answers to most, whichever way its matrices lie."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moegeo_cli.commands.check.coupling import Coupling
from tests.commands.check.recorded import piece_of

EXPERTS, WIDTH, INNER = 4, 6, 9
ROWS = np.random.default_rng(0).normal(size=(EXPERTS, WIDTH)).astype(np.float32)


def largest(pieces: list[tuple[int, str, np.ndarray | None]], rows: np.ndarray = ROWS) -> list:
    found = Coupling(SimpleNamespace(weight_ED=rows, experts=dict.fromkeys(range(EXPERTS))))
    for expert, role, values in pieces:
        found.add(piece_of(expert, values, role))
    return found.result()["largest"]


@pytest.mark.parametrize("turned", [False, True])
def test_the_row_with_the_largest_image_under_all_first_matrices(turned: bool) -> None:
    generator = np.random.default_rng(1)
    pieces, expected = [], []
    for expert in range(EXPERTS):
        gate, up = generator.normal(size=(2, INNER, WIDTH)).astype(np.float32)
        down = 100 * generator.normal(size=(WIDTH, INNER)).astype(np.float32)
        reach = [np.linalg.norm(gate @ r) ** 2 + np.linalg.norm(up @ r) ** 2 for r in ROWS]
        expected.append(int(np.argmax(reach)))
        for role, values in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            pieces.append((expert, role, values.T if turned else values))
    assert largest(pieces) == expected
    assert len(set(expected)) > 1


def test_an_expert_tuned_to_its_row_is_found() -> None:
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    # rows of a router are not orthogonal: each expert passes its own direction alone
    basis = np.linalg.pinv(unit).T
    pieces = [(e, "up_proj", np.outer(np.ones(INNER), basis[e])) for e in range(EXPERTS)]
    assert largest(pieces) == list(range(EXPERTS))


def test_what_does_not_tell_its_input_side_is_unknown() -> None:
    square, good = np.eye(WIDTH, dtype=np.float32), np.ones((INNER, WIDTH), np.float32)
    lost = good.copy()
    lost[0, 0] = np.nan
    assert largest([(0, "up", square), (1, "up", lost), (2, "up", np.zeros_like(good)),
                    (3, "up", None)]) == [None] * EXPERTS  # fmt: skip
    assert largest([(0, "up", good), (0, "gate", square)])[0] is None, "one unknown is enough"
    bad = ROWS.copy()
    bad[1, 1] = np.inf
    assert largest([(0, "up", good)], bad) == [None] * EXPERTS
    assert largest([(0, "up", np.ones((5, 7), np.float32))])[0] is None
