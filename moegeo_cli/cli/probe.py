"""`moegeo probe build` and `moegeo probe show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import say, stdout_console, write_document, write_payload
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import PROBE_COMMANDS

FIRST_PASSAGES, PASSAGE_CHARACTERS = 4, 160

probe_app = typer.Typer(no_args_is_help=True)


@probe_app.command()
@with_options(*PROBE_COMMANDS["build"])
def build(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="[DOMAIN=]FILE...", help="Text files, each with its domain."),
    ],
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Make a probe file from your own texts: passages from all domains in equal parts, interleaved.

    [bold]moegeo probe build prose=book.txt code=main.py --output probe.jsonl[/bold]
    """
    from moegeo_cli.probes import build_probe

    domain, tokenizer = options.pop("domain"), options.pop("tokenizer")
    place, size = _find_tokenizer(tokenizer) if tokenizer is not None else (None, None)
    text = build_probe(
        [_split_source(source, domain) for source in sources],
        tokenizer_dir=place,
        vocab_size=size,
        **options,
    )
    write_payload(text, output_options["output"])
    if output_options["output"] is not None:
        count = text.count("\n") - 1
        say(f"wrote {count:,} sequence{'s' if count != 1 else ''} to {output_options['output']}")


@probe_app.command()
@with_options(*PROBE_COMMANDS["show"])
def show(
    file: Annotated[
        Path | None, typer.Argument(help="A probe file. Default: the bundled one.")
    ] = None,
    *,
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Describe a probe: sequences, tokens, lengths, domains, hash, first passages."""
    found = _describe(file, options.pop("model"), options)
    if not write_document("moegeo.probe", found, output_options):
        _print(found)


def _split_source(source: str, domain: str | None) -> tuple[str | None, Path]:
    """Split DOMAIN=FILE. If a file with the whole text as its name exists, it is that file.

    Raises:
        UsageError: the domain is not a short printable name.
    """
    from moegeo_cli.errors import UsageError
    from moegeo_cli.probes.rows import is_domain

    before, mark, after = source.partition("=")
    named = bool(mark and after) and "/" not in before and not Path(source).exists()
    name, path = (before, after) if named else (domain, source)
    if name is not None and not is_domain(name):
        raise UsageError(
            "a domain is a short name of printable characters",
            found=ascii(name)[:80],
            hint="for example prose=book.txt",
        )
    return name, Path(path)


def _find_tokenizer(path: Path) -> tuple[Path, int | None]:
    """The folder of the tokenizer, and the vocabulary size of its model; None if not known."""
    from moegeo_cli.checkpoints.adapters.files import has_adapter
    from moegeo_cli.checkpoints.discover import open_run
    from moegeo_cli.checkpoints.folders import read_config
    from moegeo_cli.measuring.probe import tokenizer_place, vocabulary_size
    from moegeo_cli.probes.tokenizing import find_tokenizer

    if (path / "config.json").is_file():
        return path, vocabulary_size(read_config(path))
    plain = path.is_dir() and not has_adapter(path)
    if plain and find_tokenizer(path) == path and not any(path.glob("*/config.json")):
        return path, None
    newest = open_run(path).newest
    return tokenizer_place(newest), vocabulary_size(newest.config)


def _describe(file: Path | None, model: Path | None, keys: dict[str, Any]) -> dict[str, Any]:
    """The facts about a probe. Without a model, text is counted in bytes."""
    from moegeo_cli.probes import BUNDLED, Probe, Source, load_probe
    from moegeo_cli.probes.reading import describe_rows, read_file
    from moegeo_cli.probes.rows import ReadOptions, printable

    source = Source(file, **keys)
    content = read_file(file or BUNDLED, ReadOptions(**keys))
    first = [
        {"domain": row.domain, "text": row.text[:PASSAGE_CHARACTERS]}
        for row in content.rows
        if row.text
    ][:FIRST_PASSAGES]
    if model is None:
        name = printable(file.name) if file else "bundled"
        return {"source": name, **describe_rows(content), **_notes(content.notes), "first": first}
    from moegeo_cli.checkpoints.discover import open_run
    from moegeo_cli.measuring.probe import document_ends, tokenizer_place, vocabulary_size

    newest = open_run(model).newest
    config = newest.config
    probe: Probe = load_probe(
        source, vocab_size=vocabulary_size(config), tokenizer_dir=tokenizer_place(newest),
        ends=document_ends(config),
    )  # fmt: skip
    return {
        **probe.describe(),
        "domain_tokens": probe.domain_tokens,
        "lengths": probe.lengths,
        **_notes(probe.notes),
        "first": first,
    }


def _notes(notes: tuple[str, ...]) -> dict[str, list[str]]:
    """Notes on how the file was read, under "notes"; empty if there are none."""
    return {"notes": list(notes)} if notes else {}


def _print(found: dict[str, Any]) -> None:
    """Print a table of facts, then the first passages. Text from files is never markup."""
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.items():
        if name == "first" or value is None:
            continue
        words = value
        if isinstance(value, dict):
            words = ", ".join(f"{k} {v:,}" for k, v in value.items()) or "none named"
        elif isinstance(value, list):
            words = "; ".join(value)
        elif isinstance(value, int):
            words = f"{value:,}"
        table.add_row(name.replace("_", " "), Text(str(words)))
    console.print(table)
    for passage in found["first"]:
        console.print()
        console.print(Text(f"[{passage['domain'] or 'no domain'}] ", style="dim"), end="")
        console.print(Text(repr(passage["text"])[1:-1]), soft_wrap=False)
