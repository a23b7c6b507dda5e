"""The names and numbers that cross the wire (docs/protocol.md)."""

from typing import Final

#: Version of the Perspective Broker part of the protocol; `hello` agrees on one.
PROTOCOL: Final = 1
PROTOCOLS: Final = (1,)

#: ALPN names (RFC 7301). No ALPN at all means Perspective Broker.
ALPN_PB: Final = b"sksd-pb/1"
ALPN_LINK: Final = b"sksd-link/1"

#: On the UNIX socket of a proxy there is no ALPN: the first line says the same.
PREAMBLE_PB: Final = ALPN_PB + b"\n"
PREAMBLE_LINK: Final = ALPN_LINK + b"\n"
#: On the keeper's socket: one descriptor comes with the line, of a connection that begins as a link does; what was
#: read of it already follows.
PREAMBLE_HANDOVER: Final = b"sksd-handover/1\n"
#: Before that line the gate of a shared host writes another: this, the key of the account's tickets, `any` (or `link`
#: where nothing but a link may follow), and the account's name, with a space between them.
PREAMBLE_GATE: Final = b"sksd-gate/1 "

#: Zeroconf service type (RFC 6763).
SERVICE_TYPE: Final = "_sksd._tcp.local."

METHOD_PASSWORD: Final = "password"
METHOD_SSH_KEY: Final = "ssh-key"
#: On the UNIX socket of a shared host: the account of whoever connects.
METHOD_LOCAL: Final = "local"

STARTED: Final = "started"
STARTED_AS_GUEST: Final = "started as guest"
CREATED: Final = "environment created, started"
INCOMPATIBLE: Final = "environment incompatible"
REFUSED: Final = "refused"

#: Stands for the path of the connection file in the arguments of an engine, as in a kernelspec (jupyter_client).
CONNECTION_FILE: Final = "{connection_file}"

#: States of an engine.
STARTING: Final = "starting"
RUNNING: Final = "running"
RESTARTING: Final = "restarting"
STOPPING: Final = "stopping"
DEAD: Final = "dead"

FEATURES: Final = ("environments", "engines", "links")
