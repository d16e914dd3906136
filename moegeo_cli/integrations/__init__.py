"""Analyze checkpoints during training: a function for loops, callbacks for transformers, Lightning.

    from moegeo_cli.integrations import after_save
    from moegeo_cli.integrations.transformers import MoegeoCallback
    from moegeo_cli.integrations.lightning import MoegeoCallback

All analyze the run after a save, write scalars if asked, and say whether the training must stop.
An error of an analysis is written to the logger `moegeo` and is never raised into the training.
"""

from moegeo_cli.integrations.saves import Judged, after_save

__all__ = ["Judged", "after_save"]
