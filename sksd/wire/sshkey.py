"""Login with an SSH key: what is signed, in which form, and whether a signature is right. Pure.

The client signs, as `ssh-keygen -Y sign` does (PROTOCOL.sshsig of OpenSSH), three things together: whom it wants to
be, a value that only the two ends of this very TLS connection know (RFC 9266, tls-exporter), and a nonce of the
daemon's. So a signature is good for one connection, somebody in the middle has no use for it, and it can be mistaken
for none that ssh itself makes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from msgspec import Meta

from sksd.wire.messages import KeyProof

_MAGIC: Final = b"SSHSIG"
_NAMESPACE: Final = b"login@sksd"
#: Kind of key -> name of the signature that is made with it.
ALGORITHMS: Final = {
    "ssh-ed25519": "ssh-ed25519",
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "ssh-rsa": "rsa-sha2-512",
}
_CURVE_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    256: hashes.SHA256(),
    384: hashes.SHA384(),
    521: hashes.SHA512(),
}
#: Bits of an RSA key: fewer are weak, and more cost the daemon its time.
_RSA_BITS: Final = range(2048, 8193)

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Attempt(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the daemon hands to the gate as the "password" of the method `ssh-key`, in JSON: the client's proofs, and
    what they must be for. `channel` and `nonce` in base64; `address` is where the client connects from."""

    channel: str
    nonce: str
    address: str
    keys: Annotated[list[KeyProof], Meta(max_length=6)]


def read_attempt(said: str) -> Attempt:
    """An attempt of JSON. Raises msgspec's errors for what is none; only the daemon makes these."""
    return msgspec.json.decode(said, type=Attempt)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _strings(data: bytes) -> list[bytes]:
    """The strings that `data` consists of; raises ValueError."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 + size:
            raise ValueError("truncated")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def _mpint(number: int) -> bytes:
    return _string(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def message(user: str, channel: bytes, nonce: bytes) -> bytes:
    """The bytes that are signed for a login as `user`."""
    inner = _string(user.encode()) + _string(channel) + _string(nonce)
    digest = hashlib.sha512(inner).digest()
    return _MAGIC + _string(_NAMESPACE) + _string(b"") + _string(b"sha512") + _string(digest)


def kind(blob: bytes) -> str | None:
    """The kind of the key in `blob` (the middle word of its line, decoded); None for one that cannot be used here."""
    try:
        name = _strings(blob[: 4 + int.from_bytes(blob[:4], "big")])[0].decode("ascii")
    except (ValueError, IndexError):
        return None
    return name if name in ALGORITHMS else None


def _public(blob: bytes) -> PublicKey:
    try:
        key = load_ssh_public_key((kind(blob) or "none").encode() + b" " + base64.b64encode(blob))
    except (UnsupportedAlgorithm, TypeError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, PublicKey) or (isinstance(key, rsa.RSAPublicKey) and key.key_size not in _RSA_BITS):
        raise ValueError("not a key that can be used here")
    return key


def sign(key: PrivateKey, data: bytes) -> bytes:
    """The signature of `data`, as an agent would make it."""
    match key:
        case ed25519.Ed25519PrivateKey():
            return _string(b"ssh-ed25519") + _string(key.sign(data))
        case rsa.RSAPrivateKey():
            return _string(b"rsa-sha2-512") + _string(key.sign(data, padding.PKCS1v15(), hashes.SHA512()))
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_CURVE_HASHES[key.curve.key_size])))
    return _string(f"ecdsa-sha2-nistp{key.curve.key_size}".encode()) + _string(_mpint(r) + _mpint(s))


def verified(blob: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is one of `data` by the key in `blob`. Never raises, whatever a stranger sends."""
    try:
        key = _public(blob)
        algorithm, value = _strings(signature)
        if algorithm.decode("ascii") != ALGORITHMS[kind(blob) or ""]:
            return False
        match key:
            case ed25519.Ed25519PublicKey():
                key.verify(value, data)
            case rsa.RSAPublicKey():
                key.verify(value, data, padding.PKCS1v15(), hashes.SHA512())
            case ec.EllipticCurvePublicKey():
                r, s = (int.from_bytes(each, "big") for each in _strings(value))
                key.verify(encode_dss_signature(r, s), data, ec.ECDSA(_CURVE_HASHES[key.curve.key_size]))
    except (InvalidSignature, ValueError, KeyError):
        return False
    return True


def proof(blob: bytes, signature: bytes) -> KeyProof:
    """A key and its signature, as they cross the wire."""
    return KeyProof(key=base64.b64encode(blob).decode(), signature=base64.b64encode(signature).decode())


def proven(user: str, attempt: Attempt) -> list[bytes]:
    """The keys of `attempt` whose signatures are right; what else is needed is that the account takes one of them."""
    try:
        data = message(user, base64.b64decode(attempt.channel), base64.b64decode(attempt.nonce))
        given = [(base64.b64decode(each.key), base64.b64decode(each.signature)) for each in attempt.keys]
    except (binascii.Error, ValueError):
        return []
    return [blob for blob, signature in given if verified(blob, signature, data)]
