"""Environment variables that moegeo reads outside the command line.

huggingface_hub reads its own variables (HF_TOKEN, HF_HUB_OFFLINE) itself.
"""

from __future__ import annotations

import os
from pathlib import Path


def hub_home() -> Path:
    """The folder for downloads from the Hub: MOEGEO_HUB_CACHE, else one in the user's cache."""
    own = os.environ.get("MOEGEO_HUB_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else cache / "moegeo" / "hub"


def hub_endpoint() -> str | None:
    """The Hub's address in HF_ENDPOINT; None for huggingface_hub's default."""
    return os.environ.get("HF_ENDPOINT")
