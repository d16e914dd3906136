"""After a save in a training: analyze the run, write scalars, decide whether to stop.

Errors are logged and never raised into the training. With several processes, rank 0 analyzes, and
all ranks get its answer.
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
from moegeo_cli.keywords import check_and_fill, declared, refuse_unknown
from moegeo_cli.options import Analyze
from moegeo_cli.records import RunRecord
from moegeo_cli.sinks import log_run, open_places
from moegeo_cli.verdict.stopping import reason_to_stop

StopOn = Literal["faults", "failing", "never"]
LOG = logging.getLogger("moegeo")
DEVICE = "cpu"  # accelerators are left to the training


@dataclass(frozen=True, slots=True)
class Judged:
    """The result of an analysis after a save.

    Attributes:
        stop: whether the training must stop; the same in every process.
        reason: why it must stop, in a sentence; else None.
        run: the run with its verdict; None on ranks other than 0, and if the analysis failed.
        error: why the analysis failed; else None.
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
    """Analyze a run after a save. Call it in every process of the training. It raises no error.

    The verdict and the findings go to the logger `moegeo`: healthy as info, the rest as warnings.

    Args:
        path: the run folder, in which checkpoints are saved.
        log: where scalars go: one `SINK:WHERE` as for `--log`, or several.
        stop_on: when `stop` is true. faults: for exact faults (NaN, lost weights) and a diverged
            loss. failing: for a failing verdict. never: never.
        options: options of `moegeo.analyze`; the default of `device` is "cpu".

    Returns:
        The result; `stop` and `reason` are the same in every process, unless `stop_on` is never.
    """
    judged = Judged()
    if is_first():
        try:
            with kept_global_state():
                judged = _analyze(path, log, stop_on, options)
        except Exception as error:  # of any kind: the training must go on
            problem = (
                str(error) if isinstance(error, MoegeoError) else f"{type(error).__name__}: {error}"
            )
            LOG.warning("moegeo could not analyze %s: %s", path, problem)
            judged = Judged(error=problem)
    if stop_on == "never":
        return judged
    stop, reason = from_first((judged.stop, judged.reason))
    return Judged(stop, reason, judged.run, judged.error)


def check_arguments(log: str | Sequence[str], stop_on: str, options: Mapping[str, Any]) -> None:
    """Check the arguments of `after_save` at the start of a training, not at its first save.

    Raises:
        TypeError: an option that `analyze` does not have.
        UsageError: an invalid value of an option, or an unknown sink.
        OutputError: a place cannot be written.
    """
    refuse_unknown("MoegeoCallback", declared(Analyze), options)
    check_and_fill(Analyze, options)
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
    _log_verdict(run, stop)
    judged = Judged(stop is not None, stop, run)
    try:
        log_run(run, open_places(log))
    except Exception as error:  # the verdict counts even if scalars cannot be written
        LOG.warning("moegeo: scalars were not written: %s", error)
    return judged


def _log_verdict(run: RunRecord, stop: str | None) -> None:
    """Write the verdict and the active findings to the logger."""
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
