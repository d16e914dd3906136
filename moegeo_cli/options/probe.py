"""The options of `moegeo probe build` and `moegeo probe show`.

These two commands make and describe a probe file. They have no function in Python, and the registry
does not list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from moegeo_cli.keywords import Option
from moegeo_cli.options.measuring import ProbeKeys
from moegeo_cli.options.output import FactsOutput, FileOutput


class ProbeBuild(ProbeKeys, total=False):
    """Options of `probe build`."""

    domain: Annotated[str | None, Option(
        None, "Domain of files that are given without a domain.",
    )]  # fmt: skip
    tokenizer: Annotated[Path | None, Option(
        None, "A checkpoint. Its token ids are stored instead of text; the probe then works with "
        "that tokenizer only.",
    )]  # fmt: skip
    max_sequences: Annotated[int, Option(256, "At most this many passages.", minimum=1)]
    max_tokens: Annotated[int | None, Option(
        None, "At most this many tokens (bytes, without --tokenizer).", minimum=1, own_table=True,
    )]  # fmt: skip
    seed: Annotated[int, Option(0, "Random seed for the choice of passages.", minimum=0)]


class ProbeShow(ProbeKeys, total=False):
    """Options of `probe show`."""

    model: Annotated[Path | None, Option(
        None, "A checkpoint. Its tokens are counted instead of bytes.", own_table=True,
    )]  # fmt: skip


# The groups of each command, by its name after `moegeo probe`.
PROBE_COMMANDS: Mapping[str, tuple[Any, ...]] = {
    "build": (ProbeBuild, FileOutput),
    "show": (ProbeShow, FactsOutput),
}
