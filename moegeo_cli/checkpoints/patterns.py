"""Patterns over module names, as --router takes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate

from moegeo_cli.errors import UsageError

REGEX = "re:"


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a whole name fits: a glob (`blocks.*.router`), or a regex after `re:`.

    Raises:
        UsageError: not a regular expression.
    """
    text = pattern.removeprefix(REGEX) if pattern.startswith(REGEX) else translate(pattern)
    try:
        compiled = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--router {pattern!r} is not a regular expression", found=str(error)[:200]
        ) from error
    return lambda name: compiled.fullmatch(name) is not None
