"""Write the bundled probe: `python -m sample_checkpoints.probe`."""

from __future__ import annotations

import json
from pathlib import Path

from moegeo_cli.probes import BUNDLED
from sample_checkpoints.text import probe_documents


def render_probe() -> str:
    """The bundled probe as JSON Lines, text with its domain."""
    rows = ({"domain": d.domain, "text": d.text} for d in probe_documents())
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def main() -> None:
    Path(BUNDLED).write_text(render_probe(), encoding="utf-8")


if __name__ == "__main__":
    main()
