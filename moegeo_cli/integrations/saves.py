"""What follows a save in a training: analyze, write scalars, decide whether to stop.

It stands alone: a failure in it is said and goes no further. Where several processes train, the
first one analyzes, and all of them get its answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from moegeo_cli.errors import MoegeoError, UsageError
from moegeo_cli.global_state import kept_global_state
from moegeo_cli.integrations.ranks import from_first, is_first
from moegeo_cli.keywords import complete, declared, refuse_unknown
from moegeo_cli.options import Analyze
from moegeo_cli.records import RunRecord
from moegeo_cli.sinks import log_run, open_places
from moegeo_cli.verdict.stopping import reason_to_stop

StopOn = Literal["faults", "failing", "never"]
LOG = logging.getLogger("moegeo")
DEVICE = "cpu"  # the training has the others


@dataclass(frozen=True, slots=True)
class Judged:
    """What an analysis after a save came to.

    Attributes:
        stop: whether the training must stop; the same in every process.
        reason: why, in a sentence.
        run: the run, judged; None in other processes than the first, and where it failed.
        error: why there is no analysis; None where there is one.
    """

    stop: bool = False
    reason: str | None = None
    run: RunRecord | None = None
    error: str | None = None


def after_save(
    path: Path | str,
    *,
    log: str | Sequence[str] = (),
    stop_on: StopOn = "faults",
    **options: Any,
) -> Judged:
    """Analyze a run after a save. Call it in every process of a training; no error leaves it.

    It goes to the log of `moegeo`: a verdict as info, what is worth a look as a warning.

    Args:
        path: the run: the folder that checkpoints are saved in.
        log: where scalars go: one `SINK:WHERE` as `--log` takes it, or several.
        stop_on: what `stop` is true for. faults: exact faults (NaN, lost weights) and a loss that
            diverged. failing: whatever the verdict calls failing. never: nothing.
        options: those of `moegeo.analyze`; `device` is "cpu" where it is not given.
    """
    judged = Judged()
    if is_first():
        try:
            with kept_global_state():
                judged = _analyze(path, log, stop_on, options)
        except Exception as error:  # of whatever kind: the training goes on
            told = (
                str(error) if isinstance(error, MoegeoError) else f"{type(error).__name__}: {error}"
            )
            LOG.warning("moegeo could not analyze %s: %s", path, told)
            judged = Judged(error=told)
    if stop_on == "never":
        return judged
    stop, reason = from_first((judged.stop, judged.reason))
    return Judged(stop, reason, judged.run, judged.error)


def check_arguments(log: str | Sequence[str], stop_on: str, options: Mapping[str, Any]) -> None:
    """See at the start of a training what would fail at its first save.

    Raises:
        TypeError: an option that `analyze` does not have.
        UsageError: a value that an option does not take, or a sink that is not known.
        OutputError: a place that cannot be written.
    """
    refuse_unknown("MoegeoCallback", declared(Analyze), options)
    complete(Analyze, options)
    if stop_on not in get_args(StopOn):
        raise UsageError(f"stop_on is not one of {', '.join(get_args(StopOn))}", found=stop_on)
    if is_first():
        open_places(log)


def _analyze(
    path: Path | str, log: str | Sequence[str], stop_on: str, options: Mapping[str, Any]
) -> Judged:
    from moegeo_cli.commands.analyze.api import analyze

    run = analyze(path, **{"device": DEVICE, **options})
    verdict = run.verdict
    assert verdict is not None
    stop: str | None = None
    if stop_on == "faults":
        fault = reason_to_stop(verdict)
        stop = None if fault is None else f"{fault.name}: {fault.message}"
    elif stop_on == "failing" and verdict.status == "failing":
        stop = next(iter(verdict.reasons), "the verdict is failing")
    _tell(run, stop)
    judged = Judged(stop is not None, stop, run)
    try:
        log_run(run, open_places(log))
    except Exception as error:  # what was found counts all the same
        LOG.warning("moegeo: scalars were not written: %s", error)
    return judged


def _tell(run: RunRecord, stop: str | None) -> None:
    """The verdict and the active findings, in the log."""
    assert run.verdict is not None
    step, status = run.newest.step, run.verdict.status
    LOG.log(logging.INFO if status in ("healthy", "inconclusive") else logging.WARNING,
            "moegeo: step %s: %s", step, status)  # fmt: skip
    for finding in run.verdict.findings:
        if finding.state == "active" and finding.severity != "info":
            LOG.warning("moegeo: %s %s: %s", finding.id, finding.name, finding.message)
    for change in run.interventions[:1]:
        LOG.warning("moegeo: do first: %s. %s", change.title, change.action)
    if stop is not None:
        LOG.warning("moegeo: the training stops: %s", stop)
