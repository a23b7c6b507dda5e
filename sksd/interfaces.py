"""The boundaries inside the daemon, as zope interfaces."""

from __future__ import annotations

from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import Attribute, Interface


class IAvatar(Interface):
    """What a logged-in person holds of the daemon over Perspective Broker (docs/protocol.md, "The avatar")."""


class IGate(Interface):
    """The two privileged things a daemon does; everything else about a person happens in the person's proxy.

    Kept this small so that it can move into a process of its own.
    """

    guessable = Attribute("Whether somebody may guess a secret of this gate's: then attempts wait for their turn.")

    def methods() -> list[str]:
        """The login methods this gate knows. Called for every `hello`."""

    async def check(method: str, user: str, password: str) -> str:
        """The name of the account that these credentials open; raises LoginRefused (one sentence for an unknown
        user and a wrong password) or LoginMethod. Called by the portal's checker, once a login. For the method
        `ssh-key` the password is a `sksd.wire.sshkey.Attempt` in JSON."""

    async def endpoint(user: str) -> IStreamClientEndpoint:
        """The socket of `user`'s proxy, which runs when this returns.

        Called when a login or a link first needs the proxy, and again after the connection to it was lost. Raises
        ProxyFailed with the reason.
        """
