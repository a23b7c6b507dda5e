"""The boundaries inside the daemon, as zope interfaces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.interfaces import IAddress, IProtocolFactory, IStreamClientEndpoint
from zope.interface import Attribute, Interface


class IAvatar(Interface):
    """What a logged-in person holds of the daemon over Perspective Broker (docs/protocol.md, "The avatar")."""


class IGate(Interface):
    """The two privileged things a daemon does; everything else about a person happens in the person's proxy.

    In user mode they are done in the daemon (`sksd.server.gate`), on a shared host by a process of its own
    (`sksd.server.system`, docs/security.md).
    """

    guessable = Attribute("Whether somebody may guess a secret of this gate's: then attempts wait for their turn.")
    own_user: str | None = Attribute("The one account that is served; None: whoever can log in.")

    def begin(door: IProtocolFactory, gone: Callable[[], None]) -> None:
        """Called once, in the process that stays, after everything that needs privileges and before anything is read
        from the network: from here on the daemon has none. `door` takes the connections of people on this machine,
        where the gate knows them; `gone` is called when it can serve no longer."""

    def methods() -> list[str]:
        """The login methods this gate knows. Called for every `hello`."""

    async def nonce() -> str:
        """In base64, what an SSH key has to sign beside the channel. Called for every `hello`; raises GateGone."""

    async def check(method: str, user: str, password: str, peer: IAddress | None) -> str:
        """The name of the account that these credentials open, for somebody who comes from `peer`.

        Called by the portal's checker, once a login; `leave` follows each good one. For the method `ssh-key` the
        password is a `sksd.wire.sshkey.Attempt` in JSON. Raises LoginRefused (one sentence for an unknown user and a
        wrong password), AccountRefused (only after a right one), LoginMethod, GateGone.
        """

    def leave(user: str) -> None:
        """One login of `user` is over."""

    async def endpoint(user: str) -> IStreamClientEndpoint:
        """The socket of `user`'s proxy, which runs when this returns.

        Called when a login first needs the proxy, and again after the connection to it was lost. Raises ProxyFailed
        with the reason.
        """

    def ticket(user: str, engine: str) -> str:
        """A ticket for a link to `engine`. Called where the proxy made none itself."""

    async def admit(ticket: str) -> tuple[str, str, Callable[[], Awaitable[IStreamClientEndpoint]] | None]:
        """The user and the engine of a link, and where it goes on; None: at the user's `endpoint`. Called for each
        link that comes in; raises TicketRefused, AccountRefused, GateGone."""
