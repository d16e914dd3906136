"""Turn conversations into token ids, with the checkpoint's own chat template.

The template is a Jinja program out of the checkpoint. transformers runs it in Jinja's sandbox,
which reaches neither files nor Python's own functions.

Legend: N tokens of a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.dataset import IGNORED_LABEL
from moegeo_cli.probes.messages import ASSISTANT
from moegeo_cli.probes.rows import Chat
from moegeo_cli.probes.tokenizing import find_tokenizer

MARKED = re.compile(r"\{%-?\s*generation\b")
Encode = Callable[[Chat, str], tuple[np.ndarray, np.ndarray]]


def open_chat(folder: Path) -> Encode:
    """Open the checkpoint's chat template.

    Only the assistant's tokens have labels. A template with `{% generation %}` marks the
    assistant's turns itself. For other templates, a turn is the text that rendering adds after
    the generation prompt.

    Returns:
        A function of a conversation and its place in the file (for errors). It returns the token
        ids and the labels, both (N,) int64, with label -100 at the tokens of the other roles.

    Raises:
        ProbeError: no tokenizer, or one without a chat template.
    """
    place = find_tokenizer(folder)
    tokenizer = None if place is None else _open(place)
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or not getattr(tokenizer, "is_fast", False):
        raise ProbeError(
            "the probe holds conversations, and the checkpoint has no chat template",
            found="no tokenizer" if tokenizer is None else "a tokenizer without one",
            hint="put chat_template.jinja or a tokenizer_config.json with it beside the "
            "tokenizer, or give the rendered text as --probe",
        )

    def encode(chat: Chat, where: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            return _encode(tokenizer, template, chat, where)
        except ProbeError:
            raise
        except Exception as error:  # a template may raise anything
            raise ProbeError(
                f"the checkpoint's chat template does not take {where}",
                found=f"{type(error).__name__}: {error}"[:200],
                hint="give conversations of the roles that it knows, or the rendered text",
            ) from error

    return encode


def _open(place: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (place / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ProbeError(
            "the checkpoint's tokenizer cannot be opened for its chat template",
            found=str(error)[:200],
            hint="save the tokenizer again with save_pretrained",
        ) from error


def _encode(tokenizer: Any, template: str, chat: Chat, where: str) -> tuple[np.ndarray, np.ndarray]:
    def render(messages: list[Mapping[str, Any]], *, prompt: bool = False) -> str:
        tools = None if chat.tools is None else list(chat.tools)
        return str(tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt
        ))  # fmt: skip

    messages = list(chat.messages)
    whole = render(messages)
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids_N = np.array(found["input_ids"], dtype=np.int64)
    starts_N = np.array([start for start, _ in found["offset_mapping"]], dtype=np.int64)
    assistant_N = np.zeros(len(ids_N), bool)
    for start, end in (
        _marked_turns(tokenizer, template, chat)
        if MARKED.search(template)
        else _find_turns(render, messages, whole, where)
    ):
        assistant_N |= (starts_N >= start) & (starts_N < end)
    return ids_N, np.where(assistant_N, ids_N, IGNORED_LABEL)


def _marked_turns(tokenizer: Any, template: str, chat: Chat) -> list[tuple[int, int]]:
    """(start, end) characters of the assistant's turns, as the template marks them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _, spans = render_jinja_template(
        conversations=[list(chat.messages)], chat_template=template,
        tools=None if chat.tools is None else list(chat.tools),
        return_assistant_tokens_mask=True, **tokenizer.special_tokens_map,
    )  # fmt: skip
    return [(int(start), int(end)) for start, end in spans[0]]


def _find_turns(
    render: Callable[..., str], messages: list[Mapping[str, Any]], whole: str, where: str
) -> list[tuple[int, int]]:
    """(start, end) characters of the assistant's turns: from after the prompt to the next turn."""
    found = []
    for place, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = render(messages[:place], prompt=True) if place else ""
        after = render(messages[: place + 1])
        if not whole.startswith(before):  # a template without a prompt, or with another one
            before = render(messages[:place]) if place else ""
        shared = _shared_prefix(whole, after)
        if not whole.startswith(before) or shared <= len(before):
            raise ProbeError(
                f"the checkpoint's chat template renders the start of {where} differently when "
                "more turns follow",
                found=f"turn {place + 1} alone is not the start of the whole conversation",
                hint="use a template with {% generation %}: it marks the assistant's turns itself",
            )
        found.append((len(before), shared))
    return found


def _shared_prefix(one: str, other: str) -> int:
    """Length of the longest common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
