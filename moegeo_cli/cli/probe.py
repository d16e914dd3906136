"""`moegeo probe build` and `moegeo probe show`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import say, stdout_console, write_payload
from moegeo_cli.cli.options import OUTPUT, OutputOption

probe_app = typer.Typer(no_args_is_help=True)


class ShowFormat(StrEnum):
    """What stdout carries."""

    rich = "rich"
    json = "json"


@probe_app.command()
def build(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="[DOMAIN=]FILE...", help="Texts, each with the name of its domain."),
    ],
    output: OutputOption = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint: store its token ids instead of text, which ties the "
            "probe to that tokenizer."
        ),
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="At most so many passages.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the choice of passages.")] = 0,
) -> None:
    """Make a probe file of your own texts: passages, evenly over domains, interleaved.

    [bold]moegeo probe build prose=book.txt code=main.py --output probe.jsonl[/bold]
    """
    from moegeo_cli.checkpoints.discover import read_config
    from moegeo_cli.measurement.analysis import vocabulary_of
    from moegeo_cli.probes import build_probe

    pairs = []
    for source in sources:
        domain, mark, file = source.partition("=")
        named = bool(mark) and not Path(source).exists()
        pairs.append((domain, Path(file)) if named else (None, Path(source)))
    size = vocabulary_of(read_config(tokenizer)) if tokenizer is not None else None
    text = build_probe(pairs, tokenizer_dir=tokenizer, vocab_size=size,
                       max_sequences=max_sequences, seed=seed)  # fmt: skip
    write_payload(text, output)
    if output is not None:
        say(f"wrote {text.count(chr(10)) - 1} sequences to {output}")


@probe_app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(help="A probe file. Default: the bundled one.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint: count its tokens instead of characters.")
    ] = None,
    output_format: Annotated[
        ShowFormat,
        typer.Option("--format", "-f", help="What stdout carries.", rich_help_panel=OUTPUT),
    ] = ShowFormat.rich,
) -> None:
    """Describe a probe: sequences, tokens, domains, hash, first passages."""
    found = _describe(file, model)
    if output_format is ShowFormat.json:
        document = {"format": {"name": "moegeo.probe", "version": 1}, **found}
        write_payload(json.dumps(document, indent=2, ensure_ascii=False), None)
        return
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.items():
        if name == "first":
            continue
        words = value
        if isinstance(value, dict):
            words = ", ".join(f"{k} {v:,}" for k, v in value.items()) or "none named"
        elif isinstance(value, int):
            words = f"{value:,}"
        table.add_row(name.replace("_", " "), Text(str(words)))
    console.print(table)
    for passage in found.get("first", []):
        console.print()
        console.print(Text(f"[{passage['domain'] or 'no domain'}] ", style="dim"), end="")
        console.print(Text(repr(passage["text"])[1:-1]), soft_wrap=False)


def _describe(file: Path | None, model: Path | None) -> dict[str, Any]:
    from moegeo_cli.probes import BUNDLED, load_probe
    from moegeo_cli.probes.reading import read_file

    rows = read_file(file or BUNDLED).rows
    first = [{"domain": r.domain, "text": (r.text or "")[:160]} for r in rows[:4] if r.text]
    if model is not None:
        from moegeo_cli.checkpoints.discover import open_run, read_config
        from moegeo_cli.measurement.analysis import vocabulary_of

        path = open_run(model).newest.path
        probe = load_probe(file, vocab_size=vocabulary_of(read_config(path)), tokenizer_dir=path)
        return {**probe.describe(), "first": first}
    domains: dict[str, int] = {}
    for row in rows:
        if row.domain is not None:
            domains[row.domain] = domains.get(row.domain, 0) + 1
    facts: dict[str, Any] = {"source": file.name if file else "bundled", "sequences": len(rows)}
    if any(r.input_ids is not None for r in rows):
        facts["tokens"] = sum(len(r.input_ids) for r in rows if r.input_ids is not None)
    else:
        facts["bytes"] = sum(len((r.text or "").encode()) for r in rows)
    return {**facts, "domains": dict(sorted(domains.items())), "first": first}
