"""Makes text from files safe for each format that shows it.

Names, paths and notes come from files that anyone may have written. Terminal escapes, markup,
workflow commands and formulas in them must stay plain text.
"""

from __future__ import annotations

import re

LIMIT = 600  # maximum characters of one string from a file
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device strings
    r"|\x1b[ -/]*[0-~]"
)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_]))")


def clean(text: object, limit: int = LIMIT) -> str:
    """The text as one printable line: no escapes, control, direction or zero-width characters."""
    found = str(text)
    if not found.isprintable():
        found = "".join(_printable(c) for c in _ANSI.sub("", found)).strip()
    return found if len(found) <= limit else found[: limit - 1] + "…"


def clean_lines(text: str) -> list[str]:
    """The lines of a text such as code, each cleaned; indents are kept."""
    lines = []
    for line in text.expandtabs(4).splitlines():
        body = line.lstrip(" ")
        lines.append(" " * (len(line) - len(body)) + clean(body))
    return lines


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    if 0xD800 <= ord(character) <= 0xDFFF or character in "\ufffe\uffff":
        return "\ufffd"
    return ""


def markdown_text(text: object) -> str:
    """The text escaped for markdown, also inside table cells."""
    return _MARKDOWN.sub(r"\\\1", clean(text))


def markdown_code(text: object) -> str:
    """The text as a code span that is safe inside a table cell."""
    return "`" + (clean(text).replace("`", "'").replace("|", "\\|") or " ") + "`"


def github_message(lines: list[str]) -> str:
    """The message of a workflow command, with encoded line breaks."""
    return "%0A".join(clean(line).replace("%", "%25") for line in lines)


def github_property(text: object) -> str:
    """A property of a workflow command, such as its title."""
    return clean(text).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")


def csv_text(text: object) -> str:
    """The text as a CSV cell that a spreadsheet does not read as a formula."""
    found = clean(text)
    return "'" + found if found[:1] in {"=", "+", "-", "@"} else found
