"""The tiny checkpoints of tests/checkpoints, which these tests describe."""

from tests.checkpoints.conftest import checkpoint, masters

__all__ = ["checkpoint", "masters"]
