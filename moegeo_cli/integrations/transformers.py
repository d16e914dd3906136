"""A callback for the transformers Trainer: each save is analyzed once it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moegeo_cli.integrations.saves import Judged, StopOn, after_save, check_arguments


class MoegeoCallback(TrainerCallback):  # type: ignore[misc]
    """Analyze the run after every save, on the CPU; stop the training where it must stop.

        Trainer(..., callbacks=[MoegeoCallback(log="tensorboard:tb", max_tokens=8192)])

    moegeo reads the saved files: the model in training is not touched. The training waits for it.

    Args:
        log: as `after_save` takes it, as are all that follow.
        stop_on: likewise.
        options: likewise.

    Attributes:
        judged: what came of the newest save.

    Raises:
        TypeError: an option that `analyze` does not have.
        MoegeoError: a value that an option does not take, or a sink that cannot be used.
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
        """Called by the Trainer when a checkpoint is written."""
        self.judged = after_save(
            args.output_dir, log=self.log, stop_on=self.stop_on, **self.options
        )
        if self.judged.stop:
            control.should_training_stop = True
