"""Reports as one HTML file: nothing outside it is loaded, nothing runs but its own script.

Jinja2 escapes every string. The page's policy allows the page's own script and style alone, by
their hashes: text that came through would still not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from moegeo_cli import __version__
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.registry import command_of, load
from moegeo_cli.reports.escaping import clean

LONGEST = 20_000  # characters of one text


def render(record: AnyRecord) -> str:
    """A record's report as an HTML document."""
    environment = _environment()
    page = load(command_of(type(record)).page)
    style, script = (_text(name) for name in ("style.css", "script.js"))
    return environment.get_template("page.html").render(
        page=page(record), style=style, script=script, version=__version__,
        style_hash=_hash(style), script_hash=_hash(script),
    )  # fmt: skip


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("moegeo_cli.reports.html"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize,
    )  # fmt: skip


def _finalize(value: Any) -> Any:
    """Every text without control and direction characters, before it is escaped."""
    return clean(value, LONGEST) if type(value) is str else value


@functools.cache
def _text(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    """A hash as a page's policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
