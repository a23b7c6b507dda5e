"""What daemon and gate say to each other (docs/security.md, "The gate's contract").

A SOCK_SEQPACKET pair, one JSON object a message, beside some a descriptor. Only the standard library: the gate
imports this.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Final

#: Bytes of a message: a password of the longest kind takes twelve a letter in JSON.
LARGEST: Final = 65536
#: Letters of a password, of an account's name and of an address.
LONGEST_SECRET: Final = 4096
LONGEST_NAME: Final = 255

#: The three kinds of requests (`ask`).
NONCE: Final = "nonce"
CHECK: Final = "check"
PROXY: Final = "proxy"

#: Methods of CHECK.
PASSWORD: Final = "password"
SSH_KEY: Final = "ssh-key"
LOCAL: Final = "local"
TICKET: Final = "ticket"
GUEST: Final = "guest"

#: Why not (`reason`): the credentials are wrong; right, but the account may not come in (`problem`); a ticket is not
#: good; a proxy cannot be had (`problem`); the request is not of this contract, or its grant is not open.
REFUSED: Final = "refused"
ACCOUNT: Final = "account"
BAD_TICKET: Final = "ticket"
FAILED: Final = "failed"
BAD: Final = "bad"


def send(channel: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one message. Raises OSError, BlockingIOError where the channel is full and does not block."""
    socket.send_fds(channel, [json.dumps(message).encode()], [] if descriptor is None else [descriptor])


def receive(channel: socket.socket, descriptors: int = 0) -> tuple[dict[str, Any], int | None] | None:
    """The next message, and the descriptor that came with it; None when the other side is gone.

    Without `descriptors` any that comes is closed unseen. Raises ValueError for what is no message; OSError.
    """
    # One byte more than allowed: a longer message comes cut.
    data, found, _, _ = socket.recv_fds(channel, LARGEST + 1, descriptors, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    try:
        message = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        for each in found:
            os.close(each)
        raise ValueError("not a message of this contract")
    return message, found[0] if found else None
