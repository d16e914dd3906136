"""What moegeo reads of the environment below the command line: the one place for it.

huggingface_hub reads its own variables (HF_TOKEN, HF_HUB_OFFLINE) by itself.
"""

from __future__ import annotations

import os
from pathlib import Path


def hub_home() -> Path:
    """The folder of downloads from the Hub: MOEGEO_HUB_CACHE, else in the user's cache."""
    own = os.environ.get("MOEGEO_HUB_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else cache / "moegeo" / "hub"


def hub_endpoint() -> str | None:
    """The address of the Hub, where HF_ENDPOINT names another one than huggingface_hub knows."""
    return os.environ.get("HF_ENDPOINT")
