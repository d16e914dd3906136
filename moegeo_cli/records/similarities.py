"""Names of similarities between two tokens: of their hidden states, and of their expert usage."""

from typing import Literal

Hidden = Literal["cosine", "visible"]
Usage = Literal["distribution", "chosen"]
