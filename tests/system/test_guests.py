"""Who may come in on a shared host, and guests."""

from __future__ import annotations

import pwd
from pathlib import Path

import psutil

from sksd.client import session
from sksd.errors import AccountRefused, LoginMethod, LoginRefused, NoSuchEngine, TooManyGuests
from sksd.wire import messages
from sksd.wire.names import REFUSED, STARTED_AS_GUEST
from tests.system.daemon import until
from tests.system.test_accounts import AccountCase


class Allowed(AccountCase):
    """allow_users, deny_users, allow_groups, and sections of users."""

    async def test_who_may_not_is_told_after_the_right_password(self) -> None:
        group = f"sksdg{self.host.mark}"
        self.configure(f"allow_groups = {group}\nallow_users = {self.host.bob}\n")
        daemon = await self.start()
        eve = self.host.add("eve")
        here = await self.log_in(self.host.ada)
        engine = await self.spin_up(here)
        ticket = (await (await here.engine(engine.id)).ticket()).ticket
        await (await self.log_in(self.host.bob)).close()
        error = await self.refused(AccountRefused, eve)
        self.assertIn("allow_users", str(error))
        await self.refused(LoginRefused, eve, "wrong")
        done = await self.sksd(eve, "engines", "local")
        self.assertIn("allow_users", done.stderr)
        await here.close()
        await self.stop(daemon)
        # Neither does a ticket of before open a link for somebody who is shut out meanwhile.
        self.configure(f"allow_groups = {group}\ndeny_users = {self.host.ada[:-1]}*\n")
        await self.start()
        self.assertIn("deny_users", str(await self.refused(AccountRefused, self.host.ada)))
        refused = await self.link(ticket)
        self.assertEqual(refused and refused.code, "account-refused")

    async def test_limit_of_one_user(self) -> None:
        ada = self.host.ada
        self.configure(f"[kernels]\nmax_kernels_per_user = 5\n[user {ada}]\nmax_kernels_per_user = 1\n")
        await self.start()
        here = await self.log_in(ada)
        await self.spin_up(here)
        wish = messages.SpinUp(environment=str(self.host.python.parent.parent))
        outcome = await here.spin_up(wish)
        self.assertEqual((outcome.outcome, outcome.code), (REFUSED, "kernel-limit-of-user"))
        self.assertIn("1 of your kernels run", outcome.message or "")
        bob = await self.log_in(self.host.bob)
        for _ in range(2):
            await self.spin_up(bob)


ONE, TWO = "one" * 15, "two" * 15


class Guests(AccountCase):
    """People without an account share one, and nothing else."""

    def setUp(self) -> None:
        super().setUp()
        self.visitor = self.host.add(f"v{self.id()[-4:]}", password=None)
        self.guests()

    def guests(self, more: str = "") -> None:
        """The configuration."""
        self.configure(f"allow_users = {self.host.ada}\n[guest]\nguest_account = {self.visitor}\n{more}")

    async def enter(self, token: str) -> session.Session:
        """Come in as a guest."""
        return await (await self.connect()).login("", token, "guest")

    async def begin(self, here: session.Session) -> messages.Engine:
        """An engine."""
        outcome = await here.spin_up(messages.SpinUp(environment=str(self.host.python.parent.parent)))
        self.assertEqual(outcome.outcome, STARTED_AS_GUEST, outcome)
        assert outcome.engine is not None
        return outcome.engine

    def left(self) -> list[str]:
        """What guests have left on disk."""
        who = pwd.getpwnam(self.visitor)
        places = (Path(who.pw_dir, ".local/state"), Path(f"/run/user/{who.pw_uid}"))
        found = [str(each) for place in places for each in place.glob("sksd*")]
        return found + [str(each) for each in Path("/tmp").glob(f"sksd-{who.pw_uid}-*")]

    async def test_guests_see_nothing_of_one_another_and_leave_nothing(self) -> None:
        daemon = await self.start()
        one, two = await self.enter(ONE), await self.enter(TWO)
        self.assertEqual((one.user, two.user), (self.visitor, self.visitor))
        engine = await self.begin(one)
        process = psutil.Process(engine.pid)
        self.assertEqual(process.uids().real, pwd.getpwnam(self.visitor).pw_uid)
        self.assertEqual(await two.engines(), [])
        with self.assertRaises(NoSuchEngine):
            await two.engine(engine.id)
        other = await self.begin(two)
        homes = {each.environ()["HOME"] for each in (process, psutil.Process(other.pid))}
        self.assertEqual(len(homes), 2)
        self.assertEqual({process.cwd()} - homes, set())
        self.assertFalse([name for name in process.environ() if name.startswith("SKSD")])
        # Who comes back is the same, also after a restart of the daemon.
        await one.close()
        await self.stop(daemon)
        daemon = await self.start()
        again = await self.enter(ONE)
        self.assertEqual([each.id for each in await again.engines()], [engine.id])
        self.assertNotIn(ONE.encode(), daemon.output)
        # With the last engine and the last login goes everything.
        self.assertEqual(len({Path(each).name for each in self.left() if "guest" in each}), 2)
        two = await self.enter(TWO)
        for here, each in ((again, engine), (two, other)):
            await (await here.engine(each.id)).shutdown(0.0)
        await again.close()
        await two.close()
        await until(lambda: not self.left(), "nothing is left")
        await until(lambda: not self.of(self.visitor), "and nobody")
        # As if nothing had been.
        self.assertEqual(await (await self.enter(ONE)).engines(), [])

    async def test_who_is_a_guest(self) -> None:
        daemon = await self.start()
        connection = await self.connect()
        self.assertEqual(connection.welcome.methods, ["password", "ssh-key", "guest"])
        await self.refused(LoginRefused, "nobody-of-that-name", "x")
        for bad in ("", "short", "é" * 31):
            with self.assertRaises(LoginRefused):
                await self.enter(bad)
        prefix = str(self.host.python.parent.parent)
        code = "import getpass; print(getpass.getuser() + '.')"
        done = await self.sksd(self.host.bob, "run", "local", prefix, "--guest", "-c", code)
        self.assertEqual((done.returncode, done.stdout), (0, f"{self.visitor}.\n"), done.stderr)
        kept = Path(pwd.getpwnam(self.host.bob).pw_dir, ".local/state/sksd/guests.json")
        self.assertEqual(kept.stat().st_mode & 0o777, 0o600)
        await self.stop(daemon)
        # Whose name no account has is one, too, where that is wanted; a wrong password makes nobody a guest.
        self.guests("guest_unknown = yes\n")
        await self.start()
        self.assertEqual((await self.log_in("nobody-of-that-name", "x")).user, self.visitor)
        await self.refused(LoginRefused, self.host.ada, "wrong")
        await self.refused(LoginRefused, "root", "wrong")
        await self.refused(LoginRefused, "", "wrong")

    async def test_limits_of_guests(self) -> None:
        self.guests(f"max_guests = 1\n[user {self.visitor}]\nmax_kernels_per_user = 1\n")
        await self.start()
        one = await self.enter(ONE)
        with self.assertRaises(TooManyGuests):
            await self.enter(TWO)
        again = await self.enter(ONE)
        await self.begin(again)
        wish = messages.SpinUp(environment=str(self.host.python.parent.parent))
        self.assertEqual((await one.spin_up(wish)).code, "kernel-limit-of-user")
        made = messages.SpinUp(environment="mine", requirements=["python"], create=True)
        outcome = await one.spin_up(made)
        self.assertEqual(outcome.outcome, REFUSED)
        await (await self.log_in(self.host.ada)).close()

    async def test_account_that_is_no_good(self) -> None:
        for name in ("nobody-of-that-name", "root", self.host.daemon_account):
            self.configure(f"[guest]\nguest_account = {name}\n")
            daemon = self.run_process(self.host.python, "-P", "-m", "sksd", "serve")
            self.assertEqual(await daemon.ended, 1)
            self.assertIn(b"line 7: there is no account " + name.encode(), daemon.output)
        self.configure("")
        await self.start()
        with self.assertRaises(LoginMethod):
            await self.enter(ONE)
