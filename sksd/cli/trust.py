"""`sksd trust`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sksd.cli import names, options
from sksd.cli.output import Output, safe
from sksd.cli.running import Scope, asking, run


@click.command("trust", epilog="Example: sksd trust lab")
@click.argument("host", required=False, shell_complete=names.complete_hosts)
@click.option("--fingerprint", metavar="F", help="Remember this fingerprint, which you got from the host's owner.")
@click.option("--forget", is_flag=True, help="No longer trust the host.")
@click.option("--list", "listing", is_flag=True, help="List the hosts that are trusted.")
@options.own_certificate
@click.option("--timeout", metavar="S", type=click.FloatRange(0, 3600, min_open=True), default=30.0,
              show_default=True, help="Seconds the host has to answer.")
@options.as_json
@click.pass_context
def command(
    context: click.Context,
    host: str | None,
    fingerprint: str | None,
    forget: bool,
    listing: bool,
    timeout: float,
    client_certificate: Path | None,
    client_key: Path | None,
) -> None:
    """Remember or forget the certificate of a host.

    Without options it shows the certificate's fingerprint and asks. Compare it with what `sksd info local` shows
    on that machine. A certificate of your own that is given here is shown to the host from then on.
    """
    output: Output = context.obj
    if listing + forget + (fingerprint is not None) > 1 or listing == (host is not None):
        raise click.UsageError("Give HOST with at most one of --fingerprint and --forget, or --list.", context)
    if host is None:
        _list(output)
    elif forget:
        _forget(output, host)
    elif fingerprint is not None:
        _remember(context, output, host, fingerprint)
    else:
        _ask(output, host, timeout)
    if client_certificate is not None and host is not None and not forget:
        from sksd.client.trust import KnownHosts

        KnownHosts().show(_key(host), client_certificate, client_key or client_certificate)


def _list(output: Output) -> None:
    import attrs

    from sksd.client.trust import KnownHosts

    known = KnownHosts().all()
    output.document([attrs.asdict(each) for each in known])
    if known:
        rows = [(each.key, each.name, each.fingerprint, each.added) for each in known]
        output.table(("HOST", "NAME", "FINGERPRINT", "ADDED"), rows)
    else:
        output.say("No host is trusted yet.")


def _key(host: str) -> str:
    from sksd.client.hosts import parse
    from sksd.client.trust import host_key
    from sksd.errors import BadHost

    place = parse(host)
    if place.local:
        raise BadHost(host=host)
    return host_key(place.text or place.name)


def _forget(output: Output, host: str) -> None:
    from sksd.client.trust import KnownHosts

    key = _key(host)
    had = KnownHosts().forget(key)
    output.document({"host": key, "fingerprint": None, "trusted": False})
    output.say(f"{key} is no longer trusted." if had else f"{key} was not trusted.")


def _remember(context: click.Context, output: Output, host: str, fingerprint: str) -> None:
    from sksd.client.trust import KnownHosts
    from sksd.wire.fingerprint import normal

    clean = normal(fingerprint)
    if clean is None:
        raise click.UsageError(f"{fingerprint!r} is not a fingerprint as SHA256:...", context)
    key = _key(host)
    KnownHosts().remember(key, clean)
    output.document({"host": key, "fingerprint": clean, "trusted": True})
    output.say(f"{key} is trusted with the certificate {clean}.")


def _ask(output: Output, host: str, timeout: float) -> None:
    async def body(scope: Scope) -> tuple[str, str, str] | str:
        """The fingerprint when the host is trusted already; else key, name and fingerprint."""
        from sksd.client import hosts
        from sksd.client.session import connect
        from sksd.errors import CertificateUnknown

        target = await hosts.target(scope.reactor, host, seconds=min(timeout, hosts.LOOKUP))
        try:
            with output.waiting(scope.reactor, f"Connecting to {target.name}"):
                connection = await connect(scope.reactor, target, timeout)
        except CertificateUnknown as error:
            shown = str(error.fields.get("fingerprint"))
            if not sys.stdin.isatty() or output.as_json:
                raise
            return target.key, target.pretty, shown
        await connection.close()
        return target.known.get(target.key) or ""

    answer = run(output, body)
    if isinstance(answer, str):
        output.document({"host": host, "fingerprint": answer, "trusted": True})
        output.say(f"{host} is trusted with the certificate {answer}.")
        return
    from sksd.client.trust import KnownHosts

    key, pretty, shown = answer
    output.say(f"{key} shows a certificate with the fingerprint")
    output.say(f"  {shown}")
    output.say(f"Compare it with the one that `sksd info local` shows on {safe(pretty or key)}.")
    with asking():
        yes = click.confirm("Is it the same?", default=False, err=True)
    if not yes:
        output.note("sksd: it is not trusted.")
        raise click.exceptions.Exit(1)
    KnownHosts().remember(key, shown, pretty)
    output.say(f"{key} is trusted now.")
