"""Recognise quantised forms that moegeo cannot read, so that the error can name them."""

from __future__ import annotations

import re

from moegeo_cli.checkpoints.quantised.files import Files, FormResult
from moegeo_cli.checkpoints.quantised.recipe import UnreadableFormError

# Pattern of a tensor name that only this form has -> the form's name.
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


def refuse_unread(files: Files, name: str) -> FormResult:
    """Refuse a tensor of a form in UNREAD; None for any other.

    Raises:
        UnreadableFormError: the tensor is of such a form; the message is its name.
    """
    for pattern, form in UNREAD:
        if pattern.search(name):
            raise UnreadableFormError(form)
    return None
