"""Reports as one HTML file that loads no other file and runs only its own script.

Jinja2 escapes every string. The page's content security policy allows only the page's own script
and style, by their hashes, so that even unescaped text could not run.
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

MAX_TEXT = 20_000  # characters of one text


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
    """Remove control and direction characters from a text, before it is escaped."""
    return clean(value, MAX_TEXT) if type(value) is str else value


@functools.cache
def _text(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    """The hash of a text, in the form of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
