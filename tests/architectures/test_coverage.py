"""No mixture-of-experts type of transformers is forgotten: each is measured, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

from tests.architectures.test_every_type import PAIRS, REFUSED, TOWERS, TYPES

EXPERTS = re.compile(r"^class \w*(?:Experts|M[oO][eE]|Router|Gating)\w*\(nn\.", re.MULTILINE)
PART = re.compile(r'model_type="([\w-]+)"')
# Found by the name of a class or by a default that is not taken; no expert is chosen in them.
WITHOUT = {
    "gemma4_assistant": "its configuration class allows no experts",
    "granite_docling": "its router takes a whole image to one of two connectors",
    "kyutai_speech_to_text": "a gated MLP",
    "moshi": "a gated MLP",
    "vitpose": "a head on vitpose_backbone, whose experts go by the data set",
}


def types_with_experts() -> set[str]:
    """Types that transformers opens with a head and whose source, or whose parts', has experts."""
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import (
        CONFIG_MAPPING_NAMES,
        model_type_to_module_name,
    )

    root = Path(transformers.__file__).parent / "models"
    opened = set(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES)
    for name in dir(modeling_auto):
        if re.fullmatch(r"MODEL_FOR_\w+_MAPPING_NAMES", name):
            opened |= set(getattr(modeling_auto, name))
    folders = {f.parent.name for f in root.glob("*/modeling_*.py") if EXPERTS.search(f.read_text())}
    of_folder = {t: model_type_to_module_name(t) for t in CONFIG_MAPPING_NAMES}
    found = {t for t, folder in of_folder.items() if folder in folders}
    holders = {
        f.parent.name
        for f in root.glob("*/configuration_*.py")
        if found & set(PART.findall(f.read_text()))
    }
    return (found | {t for t, folder in of_folder.items() if folder in holders}) & opened


def test_no_type_is_forgotten() -> None:
    """A type that transformers adds is in the table, or known to choose no experts."""
    known = {*TYPES, *TOWERS, *PAIRS, *REFUSED, *WITHOUT}
    assert types_with_experts() - known == set()
    assert {t for t in known if " + " not in t} - types_with_experts() == set()
