"""A callback for Lightning: it writes each save in transformers' format and analyzes it.

A Lightning checkpoint is a pickle of the whole training. moegeo reads weights beside a config, as
`save_pretrained` of transformers writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.integrations.ranks import is_first
from moegeo_cli.integrations.saves import LOG, Judged, StopOn, after_save, check_arguments

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise UsageError(
        "the callback for Lightning needs Lightning, which is not installed", found=str(error),
        hint="pip install 'moegeo[lightning]'",
    ) from error  # fmt: skip

Save = Callable[[LightningModule, Mapping[str, Any], Path], object]


class MoegeoCallback(Callback):  # type: ignore[misc, unused-ignore]
    """After every save: write the weights for moegeo, analyze them, stop the training if needed.

        Trainer(..., callbacks=[MoegeoCallback("runs/my-moe", log="tensorboard:tb")])

    Args:
        run: the run folder; each save writes checkpoint-STEP into it.
        save: a function of the module, its state dict and a folder, which writes the model into
            the folder. Default: `save_pretrained` of the module's only transformers model.
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
        self,
        run: Path | str,
        *,
        save: Save | None = None,
        log: str | Sequence[str] = (),
        stop_on: StopOn = "faults",
        **options: Any,
    ) -> None:
        super().__init__()
        check_arguments(log, stop_on, options)
        self.run, self.save = Path(run), save or save_pretrained
        self.given: dict[str, Any] = {"log": log, "stop_on": stop_on, **options}
        self.judged = Judged()
        self.step: int | None = None  # of the newest save

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Called by Lightning in every process for each checkpoint.

        Lightning may call it twice for one step, the second time for `last`: that is skipped.
        """
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if is_first():
            try:
                self._write(trainer.global_step, pl_module, checkpoint["state_dict"])
            except Exception as error:  # of any kind: the training must go on
                LOG.warning("moegeo: the weights of a save could not be written: %s", error)
        self.judged = after_save(self.run, **self.given)
        if self.judged.stop:
            trainer.should_stop = True

    def _write(self, step: int, module: LightningModule, state: Mapping[str, Any]) -> None:
        """Write a checkpoint under a temporary name, then rename it; an existing one is kept."""
        place = self.run / f"checkpoint-{step}"
        if place.exists():
            LOG.warning("moegeo: %s is there already, of an earlier training, and is kept", place)
            return
        temporary = self.run / f"tmp-{place.name}"
        temporary.mkdir(parents=True, exist_ok=True)
        self.save(module, state, temporary)
        temporary.rename(place)


def save_pretrained(module: LightningModule, state: Mapping[str, Any], folder: Path) -> None:
    """Write the transformers model that is an attribute of a module.

    Raises:
        UsageError: the module has none, or several.
    """
    found = [name for name, part in module.named_children() if hasattr(part, "save_pretrained")]
    if len(found) != 1:
        raise UsageError(
            f"the module has {len(found)} transformers models", found=", ".join(found) or None,
            hint="give save=FUNCTION(module, state, folder)",
        )  # fmt: skip
    prefix = f"{found[0]}."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    getattr(module, found[0]).save_pretrained(folder, state_dict=own)
