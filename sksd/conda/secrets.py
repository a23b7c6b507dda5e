"""No token and no password in what a person or a log gets to see."""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(r"/t/[^/\s]+")
# As far as the last @ before a slash: a password may have an unescaped @ in it.
_USER: Final = re.compile(r"(://[^/@:\s]*):[^/\s]*@")
_QUERY: Final = re.compile(r"(?i)([?&](?:token|access_token|password|key)=)[^&\s]+")


def mask(text: str) -> str:
    """`text` with conda tokens, passwords in URLs and the like replaced by `***`. Called for everything that leaves
    this process, and for URLs before they are written into an environment."""
    text = _TOKEN.sub("/t/***", text)
    text = _USER.sub(r"\1:***@", text)
    return _QUERY.sub(r"\1***", text)
