"""Find the quantised tensors of a checkpoint, and how each is dequantised.

Forms are recognised by names, dtypes and shapes. config.json is read only for what these leave
open (the size of a block if the last one is shorter, the offset of GPTQ's zeros). The values
therefore do not depend on what else the config says, nor on optional packages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from moegeo_cli.checkpoints.quantised.files import Files
from moegeo_cli.checkpoints.quantised.forms.bitsandbytes4 import read_bitsandbytes4
from moegeo_cli.checkpoints.quantised.forms.fp4 import read_fp4, read_mxfp4_blocks
from moegeo_cli.checkpoints.quantised.forms.quanto import read_quanto
from moegeo_cli.checkpoints.quantised.forms.scaled import read_scaled
from moegeo_cli.checkpoints.quantised.forms.torchao import read_torchao
from moegeo_cli.checkpoints.quantised.forms.unread import refuse_unread
from moegeo_cli.checkpoints.quantised.forms.words import read_words
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError
from moegeo_cli.errors import UnsupportedLayoutError

# Tried in this order; the first that recognises a tensor counts.
FORMS = (
    read_bitsandbytes4,
    read_words,
    read_fp4,
    read_mxfp4_blocks,
    read_torchao,
    read_quanto,
    read_scaled,
    refuse_unread,
)


@dataclass(slots=True)
class Plan:
    """The quantised tensors of a checkpoint.

    Attributes:
        recipes: name of a dequantised tensor -> how it is made.
        used: names in the files that the recipes use.
        left_out: names in the files that only say how activations were quantised.
        problems: (name, reason) of tensors whose form is recognised but cannot be read.
    """

    recipes: dict[str, Recipe] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def error(self, folder: Path) -> UnsupportedLayoutError | None:
        """The error for the problems; None if every quantised tensor can be read."""
        if not self.problems:
            return None
        forms = list(dict.fromkeys(words for _, words in self.problems))
        more = f", and {len(self.problems) - 1} more like it" if len(self.problems) > 1 else ""
        return UnsupportedLayoutError(
            f"{folder.name} is quantised in a form that moegeo does not read: {forms[0]}",
            found=f"{self.problems[0][0]}{more}",
            hint="give the unquantised checkpoint; `moegeo inspect` still describes the "
            "checkpoint, and --captures measures routers that are not quantised; see "
            "docs/reference/layouts.md",
            context={"forms": forms, "tensors": [name for name, _ in self.problems[:64]]},
        )


def plan_quantised(files: Files) -> Plan:
    """Find every quantised tensor and the recipe of its values.

    Args:
        files: the tensors, by names without wrappers.
    """
    plan = Plan()
    for name in files.tensors:
        if name in plan.used:
            continue
        for form in FORMS:
            try:
                result = form(files, name)
            except UnreadableFormError as error:
                plan.problems.append((name, str(error)))
                break
            if result is not None:
                target, recipe, left_out = result
                plan.recipes[target] = recipe
                plan.used.update(recipe.parts.values())
                plan.left_out.update(n for n in left_out if n in files.tensors)
                break
    return plan
