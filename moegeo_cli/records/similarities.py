"""The words for how alike two tokens are: by what routers see, and by what they choose."""

from typing import Literal

Hidden = Literal["cosine", "visible"]
Usage = Literal["distribution", "chosen"]
