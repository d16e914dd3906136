"""A callback for the transformers Trainer: it analyzes each save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moegeo_cli.integrations.saves import Judged, StopOn, after_save, check_arguments


class MoegeoCallback(TrainerCallback):  # type: ignore[misc]
    """After every save: analyze the run on the CPU, and stop the training if needed.

        Trainer(..., callbacks=[MoegeoCallback(log="tensorboard:tb", max_tokens=8192)])

    moegeo reads the saved files, not the model in training. The training waits for the analysis.

    Args:
        log: see `after_save`.
        stop_on: see `after_save`.
        options: see `after_save`.

    Attributes:
        judged: the result of the newest save.

    Raises:
        TypeError: an option that `analyze` does not have.
        MoegeoError: an invalid value of an option, or a sink that cannot be used.
    """

    def __init__(
        self, *, log: str | Sequence[str] = (), stop_on: StopOn = "faults", **options: Any
    ) -> None:
        check_arguments(log, stop_on, options)
        self.log, self.stop_on, self.options = log, stop_on, options
        self.judged = Judged()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Called by the Trainer after it has written a checkpoint."""
        self.judged = after_save(
            args.output_dir, log=self.log, stop_on=self.stop_on, **self.options
        )
        if self.judged.stop:
            control.should_training_stop = True
