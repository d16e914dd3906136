"""docs/notebooks: `python -m tests.notebook` writes the notebook and executes it.

It needs `pip install '.[docs,plots]'`. Outputs are those of this run; execution times are left out,
so that the file changes where a result does.
"""

from __future__ import annotations

import os
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "notebooks" / "a-run-in-a-notebook.ipynb"
# Text between code: a cell each.
CELLS = (
    ("markdown", "# A run in a notebook\n\n`python -m tests.notebook` writes and executes this "
     "notebook. It analyzes the small run that comes with moegeo; a path of your own goes into "
     "`moegeo.analyze(PATH)`."),
    ("code", "import moegeo\n\nrun = moegeo.demo()\nrun"),
    ("markdown", "The verdict, and what to change:"),
    ("code", "print(run.verdict.status)\nfor item in run.interventions:\n"
     '    print(item.title, "-", item.check)'),
    ("markdown", "Every number is a row of a frame:"),
    ("code", 'layers = run.frame().query("step == 400 and layer.notna()")\n'
     "layers.query(\"metric == 'collapse'\")[[\"layer\", \"value\", \"ci_low\", \"ci_high\"]]"),
    ("code", 'experts = run.frame("experts").query("step == 400 and layer == 1")\n'
     'experts[["expert", "load", "dead"]]'),
    ("markdown", "Plots are matplotlib's:"),
    ("code", 'run.plot("collapse");'),
    ("code", 'run.plot("loss", over="step");'),
    ("code", "run.plot_load();"),
    ("markdown", "What a word means:"),
    ("code", 'print(moegeo.explain("collapse"))'),
)  # fmt: skip


def main() -> None:
    """Write the notebook, with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["PYTHONWARNINGS"] = "ignore"  # of other packages, with paths of this machine
    book = nbformat.v4.new_notebook()
    kinds = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    book.cells = [kinds[kind](text) for kind, text in CELLS]
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    NotebookClient(book, timeout=300, record_timing=False).execute()
    book.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                    "language": "python"}}  # fmt: skip
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            assert output["output_type"] != "error", output
    PAGE.parent.mkdir(exist_ok=True)
    nbformat.write(book, PAGE)
    print(PAGE.name, f"{PAGE.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
