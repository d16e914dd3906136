"""Compile the module-name patterns of `--router`: globs, or regular expressions after `re:`."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate

from moegeo_cli.errors import UsageError

REGEX = "re:"


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern over module names.

    Args:
        pattern: a glob (`blocks.*.router`), or `re:` and a regular expression.

    Returns:
        A function that says whether a whole name matches.

    Raises:
        UsageError: the text after `re:` is not a regular expression.
    """
    text = pattern.removeprefix(REGEX) if pattern.startswith(REGEX) else translate(pattern)
    try:
        compiled = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--router {pattern!r} is not a regular expression", found=str(error)[:200]
        ) from error
    return lambda name: compiled.fullmatch(name) is not None
