"""Which tensors of a checkpoint are quantised, in which form, and what values they make.

The form is told by names, dtypes and shapes; config.json is asked only for what these leave open
(the size of a block whose last one is cut, the offset of GPTQ's zeros). So the same bytes are read
alike whatever the config says, and no optional package decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moegeo_cli.checkpoints.quantised.files import Files
from moegeo_cli.checkpoints.quantised.forms.bitsandbytes4 import read_bitsandbytes4
from moegeo_cli.checkpoints.quantised.forms.fp4 import read_fp4, read_mxfp4_blocks
from moegeo_cli.checkpoints.quantised.forms.quanto import read_quanto
from moegeo_cli.checkpoints.quantised.forms.scaled import read_scaled
from moegeo_cli.checkpoints.quantised.forms.torchao import read_torchao
from moegeo_cli.checkpoints.quantised.forms.unread import name_unread
from moegeo_cli.checkpoints.quantised.forms.words import read_words
from moegeo_cli.checkpoints.quantised.recipe import Recipe, UnreadableFormError

# Tried in this order: the first that knows a name counts.
FORMS = (
    read_bitsandbytes4,
    read_words,
    read_fp4,
    read_mxfp4_blocks,
    read_torchao,
    read_quanto,
    read_scaled,
    name_unread,
)


@dataclass(slots=True)
class Plan:
    """What was found: recipes by effective name, and the names in the files that they use.

    `left_out` are names that say how activations were quantised, with which no weight is made;
    `problems` are forms that were recognised and cannot be read: an example, and why.
    """

    recipes: dict[str, Recipe] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)


def plan_quantised(files: Files) -> Plan:
    """Find every quantised tensor and the recipe of its values.

    Args:
        files: the tensors by name, without wrappers.
    """
    plan = Plan()
    for name in files.tensors:
        if name in plan.used:
            continue
        for form in FORMS:
            try:
                made = form(files, name)
            except UnreadableFormError as error:
                plan.problems.append((name, str(error)))
                break
            if made is not None:
                target, recipe, beside = made
                plan.recipes[target] = recipe
                plan.used.update(recipe.parts.values())
                plan.left_out.update(n for n in beside if n in files.tensors)
                break
    return plan
