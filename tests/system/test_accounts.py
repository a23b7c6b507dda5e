"""A shared host: each person's kernels run as that person, and nobody comes near another's."""

from __future__ import annotations

import os

from tests.system.accounts import HostCase


class People(HostCase):
    """Two people at once."""

    async def test_kernel_runs_as_its_owner(self) -> None:
        daemon = await self.start()
        here = await self.log_in(self.host.ada)
        engine = await self.spin_up(here)
        print(engine, daemon.output.decode())
        os.system("ps axf -o pid,ppid,user,args | tail -40")
        os.system(f"cat /proc/{engine.pid}/status; cat /proc/{engine.pid}/limits; tr '\\0' '\\n' < /proc/{engine.pid}/environ")
        await here.engine_(engine.id) if False else None
