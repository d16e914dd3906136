"""Choose the form in which a run's models are given, by the options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.models.captured_inputs import CapturedInputs
from moegeo_cli.models.factory import CAPTURED, OwnFactory
from moegeo_cli.models.given import Models


def choose_models(
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    captures: Path | str | None = None,
    config: Path | str | None = None,
) -> Models:
    """The form in which a run's models are given.

    Args:
        model: --model, a callable or `package.module:name`; None for models of transformers.
        router: --router, a pattern of the routers' module names.
        top_k: --top-k, experts chosen per token.
        scoring: --scoring, name of the routers' scoring.
        captures: --captures, a capture of router inputs.
        config: --config, a folder with config.json.

    Raises:
        UsageError: the options contradict each other, or --model has another form.
    """
    if captures is not None:
        if model is not None:
            raise UsageError(
                "--captures does not go with --model: captured router inputs need no model",
                found="--captures with --model",
                hint="leave --model out; --router, --top-k and --scoring still count",
            )
        given = router is not None or top_k is not None or scoring is not None
        base = OwnFactory(CAPTURED, router, top_k, scoring) if given else Models(config)
        return CapturedInputs(Path(captures), base)
    if model is None:
        options = {"--router": router, "--top-k": top_k, "--scoring": scoring}
        said = [option for option, value in options.items() if value is not None]
        if said:
            raise UsageError(
                f"{said[0]} needs --model", hint="for a known model type, config.json says it"
            )
        return Models(config)
    if isinstance(model, str):
        module, _, name = model.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
            raise UsageError(
                "--model is not of the form PACKAGE.MODULE:CALLABLE",
                found=repr(model)[:200],
                hint="for instance my_project.models:build",
            )
    return OwnFactory(model, router, top_k, scoring)
