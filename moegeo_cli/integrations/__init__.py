"""moegeo inside a training: a function for loops, and callbacks for transformers and Lightning.

    from moegeo_cli.integrations import after_save
    from moegeo_cli.integrations.transformers import MoegeoCallback
    from moegeo_cli.integrations.lightning import MoegeoCallback

All analyze a run after a save, write scalars where asked, and say whether the training must stop.
What goes wrong in an analysis is said in the log of `moegeo` and never reaches the training.
"""

from moegeo_cli.integrations.saves import Judged, after_save

__all__ = ["Judged", "after_save"]
