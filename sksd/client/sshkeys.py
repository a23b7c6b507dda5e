"""The client's SSH keys: those that its agent holds, or one in a file.

Talking to an agent waits for it (it may ask the person), so `prove` works in a thread; the rest is quick.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from sksd.errors import SshKeyUnusable
from sksd.wire import sshkey
from sksd.wire.messages import KeyProof

#: Keys of an agent that are tried; a login takes no more.
MOST: Final = 6
#: Seconds that an agent may take, with a person who has to confirm; a host gives 30 s to log in.
PATIENCE: Final = 25.0
#: Numbers of draft-miller-ssh-agent: what is asked and answered, and the flag for rsa-sha2-512.
_ASK_KEYS, _KEYS, _ASK_SIGNATURE, _SIGNATURE = 11, 12, 13, 14
_RSA_SHA2_512: Final = 4
_LARGEST_ANSWER: Final = 256 * 1024
_LARGEST_FILE: Final = 64 * 1024


class Signer(Protocol):
    """One key."""

    @property
    def blob(self) -> bytes:
        """The public one."""

    def sign(self, data: bytes) -> bytes:
        """The signature; raises OSError or ValueError where there is none to be had."""


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _take(data: bytes) -> tuple[bytes, bytes]:
    """The string that `data` begins with, and the rest; raises ValueError."""
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < max(4, end):
        raise ValueError("the agent's answer is truncated")
    return data[4:end], data[end:]


def _exactly(stream: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = stream.recv(size - len(found))
        if not more:
            raise OSError("the agent hung up")
        found += more
    return found


def _ask(path: str, question: bytes, expected: int) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(path)
        stream.sendall(_string(question))
        size = int.from_bytes(_exactly(stream, 4), "big")
        if not 0 < size <= _LARGEST_ANSWER:
            raise ValueError("the agent's answer has a strange size")
        answer = _exactly(stream, size)
    if answer[0] != expected:
        raise ValueError("the agent refuses")
    return answer[1:]


@frozen
class AgentKey:
    """A key that an agent holds."""

    path: str
    blob: bytes

    def sign(self, data: bytes) -> bytes:
        """Ask the agent."""
        flags = _RSA_SHA2_512 if sshkey.kind(self.blob) == "ssh-rsa" else 0
        question = bytes([_ASK_SIGNATURE]) + _string(self.blob) + _string(data) + flags.to_bytes(4, "big")
        return _take(_ask(self.path, question, _SIGNATURE))[0]


@frozen
class FileKey:
    """A key that was read from a file."""

    key: sshkey.PrivateKey = field(repr=False)

    @property
    def blob(self) -> bytes:
        """The public key."""
        return base64.b64decode(self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])

    def sign(self, data: bytes) -> bytes:
        """Sign."""
        return sshkey.sign(self.key, data)


def of_agent(path: str | None = None) -> list[Signer]:
    """The keys of the agent at `path` ($SSH_AUTH_SOCK) that a host could take; none where there is no agent."""
    path = path or os.environ.get("SSH_AUTH_SOCK", "")
    if not path:
        return []
    found: list[Signer] = []
    try:
        answer = _ask(path, bytes([_ASK_KEYS]), _KEYS)
        count, rest = int.from_bytes(answer[:4], "big"), answer[4:]
        for _ in range(count):
            blob, rest = _take(rest)
            _, rest = _take(rest)
            if sshkey.kind(blob) is not None and len(found) < MOST:
                found.append(AgentKey(path, blob))
    except (OSError, ValueError):
        return []
    return found


def of_file(path: Path, passphrase: Callable[[], str]) -> Signer:
    """The private key in `path`, in the form that OpenSSH writes; `passphrase` is asked where it is locked.

    Raises SshKeyUnusable.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE)
    except OSError as error:
        raise SshKeyUnusable(file=str(path), problem=error.strerror or str(error)) from None
    try:
        try:
            key = load_ssh_private_key(data, None)
        except TypeError:
            key = load_ssh_private_key(data, passphrase().encode())
    except (ValueError, UnsupportedAlgorithm):
        problem = "it holds no private key of OpenSSH's, or the passphrase is wrong"
        raise SshKeyUnusable(file=str(path), problem=problem) from None
    if not isinstance(key, sshkey.PrivateKey):
        raise SshKeyUnusable(file=str(path), problem="only ed25519, ecdsa and rsa keys will do")
    return FileKey(key)


def prove(signers: list[Signer], data: bytes) -> list[KeyProof]:
    """Sign `data` with each that can; an agent's key that refuses is left out. Waits: call it in a thread."""
    proofs = []
    for signer in signers[:MOST]:
        try:
            proofs.append(sshkey.proof(signer.blob, signer.sign(data)))
        except (OSError, ValueError):
            continue
    return proofs
