"""The form in which people see, compare and type a certificate's fingerprint.

`SHA256:` and the unpadded base64 (RFC 4648, section 4) of the SHA-256 of the certificate's DER: as ssh writes
it, 50 characters.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

_PREFIX: Final = "SHA256:"
_SHAPE: Final = re.compile(r"(?:SHA256:)?([A-Za-z0-9+/]{43})=?", re.IGNORECASE)
_SPACE: Final = re.compile(r"\s+")


def fingerprint(der: bytes) -> str:
    """The fingerprint of the certificate whose DER encoding is `der`."""
    return _PREFIX + base64.b64encode(hashlib.sha256(der).digest()).decode("ascii").rstrip("=")


def normal(text: str) -> str | None:
    """`text`, as a person typed or copied it, in the one form; None when it is no fingerprint.

    White space anywhere, the case of the prefix, a missing prefix and a padding `=` do not matter. The case
    of the base64 does: it is half of what is compared.
    """
    found = _SHAPE.fullmatch(_SPACE.sub("", text))
    return None if found is None else _PREFIX + found.group(1)


def same(one: str, other: str) -> bool:
    """Whether both are fingerprints and the same one; takes the same time wherever they differ."""
    left, right = normal(one), normal(other)
    if left is None or right is None:
        return False
    return hmac.compare_digest(left.encode("ascii"), right.encode("ascii"))
