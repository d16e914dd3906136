"""Forms that are recognised and not read."""

from __future__ import annotations

import re

from moegeo_cli.checkpoints.quantised.files import Files, Made
from moegeo_cli.checkpoints.quantised.recipe import UnreadableFormError

# Marks of forms that are recognised and not read.
UNREAD = (
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.(codebooks|codes)$"), "AQLM"),
    (re.compile(r"\.(centroids|res_centroids)$"), "VPTQ"),
    (re.compile(r"\.(dense_weights|row_offsets)$"), "SpQR"),
    (re.compile(r"\.(Qidxs|SU|SV)$"), "QuIP#"),
    (re.compile(r"\.trellis$"), "QTIP or EXL3"),
    (re.compile(r"\.q_(weight|invperm|scale_max)$"), "EXL2"),
    (re.compile(r"\.(weight_bitmask|compressed|bitmask)$"), "sparse compressed-tensors"),
)


def name_unread(files: Files, name: str) -> Made:
    """A form by its marks.

    Raises:
        UnreadableFormError: it is one of them, by its name.
    """
    for pattern, form in UNREAD:
        if pattern.search(name):
            raise UnreadableFormError(form)
    return None
