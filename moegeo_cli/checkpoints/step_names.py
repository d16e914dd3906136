"""Parse step, epoch, tokens and stage from a checkpoint's name. Discovery sorts a run by them.

A number counts only after its own word (`step`, `epoch`, `tokens`); other numbers may be a width
or a date. A name that is only a number is a step, unless it is a date.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The number after a word. Numbers such as 1_000, 1,000 and 1.5 are ambiguous and do not match.
_NUMBER = r"[-_=]?(\d{1,15})(?![\dA-Za-z])(?!\.\d)(?![_,]\d{3}(?!\d))"
_STEP = re.compile(
    rf"(?<![A-Za-z])(?:global[-_]?steps?|steps?|iter(?:ation)?s?|updates?|batch|ba){_NUMBER}", re.I
)
# Words that may also count other things: they give the step only where no word of _STEP occurs.
_SAVE = re.compile(rf"(?<![A-Za-z])(?:(?:checkpoint|chkpt|ckpt){_NUMBER}|model[-_](0\d{{3,14}})$)",
                   re.I)  # fmt: skip
# fairseq's files: checkpoint_EPOCH_UPDATES
_FAIRSEQ = re.compile(r"checkpoint_(\d{1,6})_([1-9]\d{0,14})(?:-shard\d+)?")
_EPOCH = re.compile(rf"(?<![A-Za-z])(?:epochs?|ep){_NUMBER}", re.I)
_TOKENS = re.compile(
    r"(?<![A-Za-z])tok(?:en)?s?[-_=]?(\d+(?:\.\d+)?)([KMBT]?)(?![\dA-Za-z])"
    r"|(?<![\dA-Za-z.])(\d+(?:\.\d+)?)([KMBT])[-_]?tok(?:en)?s?(?![A-Za-z])",
    re.I,
)
_STAGE = re.compile(r"(?<![A-Za-z])(?:stage|phase)[-_=]?\d+", re.I)
_DATE = re.compile(
    r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T. ]?(?:[01]\d|2[0-3])[-_:.]?[0-5]\d(?:[-_:.]?[0-5]\d)?(?:[-_.]?\d{1,6})?)?"
)
# Names that mark a checkpoint whatever the folder holds; missing files are then reported.
_CHECKPOINT = re.compile(
    r"(?:checkpoint|ckpt|global[-_]?step|step|iter|iteration)[-_]?\d{1,15}(?:[-_].*)?|\d{1,15}"
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
TEMPORARY = re.compile(
    r"(?:tmp|temp)[-_.].*|.*[-_.](?:tmp|temp|partial|incomplete|unfinished|lock)"
)


@dataclass(frozen=True, slots=True)
class NameParts:
    """What a name holds; None for each part that it lacks.

    Attributes:
        step: the training step.
        epoch: the epoch.
        tokens: number of training tokens, as the name rounds it.
        stage: the part of the name before the step, where it holds `stage` or `phase`.
    """

    step: int | None = None
    epoch: int | None = None
    tokens: int | None = None
    stage: str | None = None


def read_name(name: str) -> NameParts:
    """Parse the name of a folder, or of a file without its suffix.

    A temporary name (`tmp-checkpoint-100`) has no parts.
    """
    if TEMPORARY.fullmatch(name):
        return NameParts()
    fairseq = _FAIRSEQ.fullmatch(name)
    if fairseq is not None:
        return NameParts(int(fairseq[2]), int(fairseq[1]))
    epoch = _one(_EPOCH, name)
    step = _one(_STEP, name)
    if step is None and not _STEP.search(name):
        step = _one(_SAVE, name)
    if step is None and re.fullmatch(r"\d{1,15}", name) and not is_date(name):
        step = int(name)
    stage = None
    if _STAGE.search(name):
        word = _STEP.search(name) or _SAVE.search(name)
        stage = name[: word.start()].strip("-_=. ") if word else None
    return NameParts(step, epoch, _tokens(name), stage or None)


def parse_step(name: str) -> int | None:
    """The step in a name such as checkpoint-500, stage1-step500-tokens2B or ep2-ba160, or None."""
    return read_name(name).step


def has_step_or_epoch(name: str) -> bool:
    """Whether a name holds a step or an epoch."""
    parts = read_name(name)
    return parts.step is not None or parts.epoch is not None


def is_checkpoint_name(name: str) -> bool:
    """Whether a name begins like a checkpoint's, or is a number that is no date."""
    return _CHECKPOINT.fullmatch(name) is not None and parse_step(name) is not None


def is_date(name: str) -> bool:
    """Whether a name is a date, with or without a time."""
    return _DATE.fullmatch(name) is not None


def _one(pattern: re.Pattern[str], name: str) -> int | None:
    """The number that a pattern finds; None where it finds none, or several that differ."""
    found = {int(number) for groups in pattern.findall(name) for number in
             ([groups] if isinstance(groups, str) else groups) if number}  # fmt: skip
    return found.pop() if len(found) == 1 else None


def _tokens(name: str) -> int | None:
    match = _TOKENS.search(name)
    if match is None:
        return None
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return round(float(number) * _UNITS[unit.upper()])
