"""Read the conversation in a record, in the two notations that data sets use.

One has messages with `role` and `content`, the other turns with `from` and `value`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.rows import Chat, is_text

CHATS = ("messages", "conversations")
ASSISTANT = "assistant"
# The role, as chat templates name it, of each speaker in the notation with `from` and `value`.
ROLES = {
    "human": "user", "user": "user", "gpt": ASSISTANT, "assistant": ASSISTANT, "model": ASSISTANT,
    "bot": ASSISTANT, "system": "system", "tool": "tool", "observation": "tool",
    "developer": "developer",
}  # fmt: skip


def read_chat(value: Any, record: Mapping[str, Any], where: str) -> Chat:
    """The messages of a record, as chat templates take them.

    Args:
        value: the record's list of messages, with `role` and `content`, or `from` and `value`.
        record: the whole record; its `tools` and its `system` text are used too.
        where: the record's place in the file, for errors.

    Raises:
        ProbeError: not a conversation of text.
    """
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise ProbeError(
            f"the conversation in {where} is not a list of messages", found=ascii(value)[:80],
            hint='like [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        )  # fmt: skip
    messages = [_message(message, where) for message in value]
    system = record.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if not is_text(json.dumps(messages, ensure_ascii=False)):
        raise ProbeError(f"the text in {where} is not Unicode", found="half of a surrogate")
    return Chat(tuple(messages), _tools(record.get("tools"), where))


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    message = {key: value for key, value in given.items() if value is not None}
    if "from" in message and "value" in message:
        speaker = message["from"]
        if speaker not in ROLES:
            raise ProbeError(f"a speaker in {where} is not known", found=ascii(speaker)[:80],
                             hint=f"known are {', '.join(ROLES)}")  # fmt: skip
        message = {"role": ROLES[speaker], "content": message["value"]}
    role, content = message.get("role"), message.get("content", "")
    if not isinstance(role, str) or not role:
        raise ProbeError(f"a message in {where} names no role", found=ascii(given)[:80])
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text" or not isinstance(part, str | dict):
            raise ProbeError(
                f"a message in {where} is not text", found=ascii(part)[:80],
                hint="only text is supported: remove images and other parts",
            )  # fmt: skip
    return message


def _tools(value: Any, where: str) -> tuple[Any, ...] | None:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ProbeError(f"tools in {where} are not JSON", found=str(error)[:200]) from error
    if not value:
        return None
    if not isinstance(value, list):
        raise ProbeError(f"tools in {where} are not a list", found=ascii(value)[:80])
    return tuple(value)
