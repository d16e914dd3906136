"""Pictures of reports for README.md and docs/gallery.md: `python -m tests.pictures` makes them.

Terminal screens are drawn by rich as SVG, pages by Chromium as PNG (`apt-get install chromium`).
The samples are measured for it, which takes a minute; nothing in a picture is drawn by hand.
"""

from __future__ import annotations

import html
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
SAMPLES = ROOT / "sample_checkpoints"
WIDTH = 80
# rich's own frame without its font, which would be loaded from elsewhere.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: arial; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def screen(name: str, command: str, show: Callable[[Console], None]) -> Path:
    """A terminal with what a command prints.

    Args:
        name: of the file.
        command: the title of the window.
        show: prints it.
    """
    console = Console(width=WIDTH, record=True, force_terminal=True, color_system="truecolor",
                      file=io.StringIO(), highlight=False)  # fmt: skip
    show(console)
    text = console.export_svg(title=command, code_format=SVG, unique_id=name)
    path = FOLDER / f"{name}.svg"
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")
    return path


def lines_of(picture: Path) -> list[str]:
    """The lines of text that a terminal's picture shows."""
    rows: dict[float, list[tuple[float, str]]] = {}
    pattern = r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>'
    for x, y, text in re.findall(pattern, picture.read_text("utf-8")):
        rows.setdefault(float(y), []).append((float(x), html.unescape(text).replace("\xa0", " ")))
    return ["".join(text for _, text in sorted(row)).rstrip() for _, row in sorted(rows.items())]


def page(name: str, text: str, height: int, part: str = "") -> Path:
    """A picture of an HTML report: its top, or one section, by its id, without the others."""
    if part:  # the page's policy would refuse a style that it does not know
        text = re.sub(r"<meta http-equiv=[^>]*>", "", text)
        text = text.replace("</style>", f"main > :not(#{part}) {{ display: none }}</style>", 1)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("chromium is not installed (apt-get install chromium)")
    path = FOLDER / f"{name}.png"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "report.html"
        source.write_text(text, "utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={folder}/profile", f"--window-size=1100,{height}",
                   "--virtual-time-budget=2000", f"--screenshot={path}"]  # fmt: skip
        subprocess.run([*command, source.as_uri()], check=True, capture_output=True)
    return path


def main() -> None:
    """Make them all."""
    import moegeo_cli
    from moegeo_cli.reports import print_record, print_run, render
    from tests.reports.large_run import large_run

    FOLDER.mkdir(exist_ok=True)
    known: dict[str, Any] = {"cache": False}
    run = moegeo_cli.demo()
    compared = moegeo_cli.compare(
        SAMPLES / "healthy-qwen3-moe", SAMPLES / "unbalanced-mixtral", **known
    )
    checked = moegeo_cli.check(SAMPLES / "unbalanced-mixtral", **known)
    experts = moegeo_cli.experts(SAMPLES / "unbalanced-mixtral", **known)
    routing = moegeo_cli.routing(SAMPLES / "unbalanced-mixtral", **known)
    made = [
        screen("analyze", "moegeo demo", lambda console: print_run(run, console)),
        screen("compare", "moegeo compare", lambda console: print_record(compared, console)),
        screen("check", "moegeo check", lambda console: print_record(checked, console)),
        screen("experts", "moegeo experts", lambda console: print_record(experts, console)),
        screen("routing", "moegeo routing", lambda console: print_record(routing, console)),
        page("analyze-page", render(run, "html"), 1130),
        page("large-load", render(large_run(), "html"), 900, "load"),
        page("compare-page", render(compared, "html"), 900),
        page("experts-page", render(experts, "html"), 1000),
        page("routing-page", render(routing, "html"), 1000),
    ]
    for path in made:
        print(path.relative_to(ROOT), f"{path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
