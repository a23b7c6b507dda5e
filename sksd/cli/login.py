"""`sksd login`."""

from __future__ import annotations

import click

from sksd.cli import options
from sksd.cli.output import Output
from sksd.cli.running import Scope, run


@click.command("login", epilog="Example: sksd login lab --user ada")
@options.host
@click.option("--forget", is_flag=True, help="Remove the password from the keyring.")
@options.on_host
@click.pass_obj
def command(output: Output, access: options.Access, forget: bool) -> None:
    """Log in, and keep the password in the keyring. With an SSH key none is needed."""

    async def body(scope: Scope) -> None:
        from sksd.cli import access as logins
        from sksd.cli.running import finished

        host = await logins.reach(scope, access)
        user = logins.account(access, host)
        if forget:
            had = logins.keep_password(user, host, None)
            output.document({"host": host.name, "user": user, "stored": False})
            output.say(f"Forgot the password for {host.name}." if had else f"No password is kept for {host.name}.")
            return
        password = "" if logins.is_known(access, host) else logins.given_password(access, host)
        connection, session, used = await logins.enter(scope, access, host, user, password)
        await finished(connection.close())
        # The token in its file is all that the daemon of this very user needs.
        store = bool(used) and not host.own and not access.guest
        if store:
            logins.keep_password(user, host, used)
        output.document({"host": host.name, "user": session.user, "stored": store})
        kept = " The password is in the keyring." if store else ""
        output.say(f"Logged in on {host.name} as {session.user}.{kept}")

    run(output, body)
