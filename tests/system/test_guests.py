"""Who may come in on a shared host, and guests."""

from __future__ import annotations

from sksd.errors import AccountRefused, LoginRefused
from sksd.wire import messages
from sksd.wire.names import REFUSED
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
