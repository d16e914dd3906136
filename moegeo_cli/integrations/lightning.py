"""A callback for Lightning: each save is also written as moegeo reads it, and analyzed.

A checkpoint of Lightning is a pickle of the whole training. moegeo reads weights beside a config,
as `save_pretrained` of transformers writes them.
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
        "the callback for Lightning needs it installed", found=str(error),
        hint="pip install 'moegeo[lightning]'",
    ) from error  # fmt: skip

Save = Callable[[LightningModule, Mapping[str, Any], Path], object]


class MoegeoCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Write the weights of every save for moegeo, analyze them, stop where the training must stop.

        Trainer(..., callbacks=[MoegeoCallback("runs/my-moe", log="tensorboard:tb")])

    Args:
        run: the folder in which checkpoint-STEP is written at each save of the trainer's.
        save: writes a model into a folder, given the module, its state and the folder. Default:
            `save_pretrained` of the one transformers model that is an attribute of the module.
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
        """Called by Lightning in every process while it gathers a checkpoint.

        It gathers some twice: one is its `last`.
        """
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if is_first():
            try:
                self._write(trainer.global_step, pl_module, checkpoint["state_dict"])
            except Exception as error:  # of whatever kind: the training goes on
                LOG.warning("moegeo: the weights of a save could not be written: %s", error)
        self.judged = after_save(self.run, **self.given)
        if self.judged.stop:
            trainer.should_stop = True

    def _write(self, step: int, module: LightningModule, state: Mapping[str, Any]) -> None:
        """The folder gets its name when it is whole; one that is there, of a resumed run, stays."""
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
        UsageError: it has none, or several.
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
