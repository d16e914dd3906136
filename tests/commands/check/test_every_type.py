"""No type that moegeo knows is called frozen, copied or damaged before training."""

from __future__ import annotations

from pathlib import Path

import pytest

from moegeo_cli import check
from tests.architectures.test_every_type import PAIRS, TOWERS, TYPES
from tests.architectures.zoo import save_tiny
from tests.commands.check.planting import names


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*TYPES, *TOWERS, *PAIRS])
def test_a_fresh_model_of_every_type_is_healthy(model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path)
    record = check(tmp_path)
    assert names(record) == set()
    for layer in record.newest.layers:
        assert layer.expert_norms is not None
        assert all(norm is not None for norm in layer.expert_norms)
