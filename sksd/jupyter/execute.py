"""Runs a program on an engine through its connection file, and passes on everything it says.

Asyncio: the caller's reactor is asyncio's.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient

from sksd.jupyter import snippets
from sksd.jupyter.output import Page, Rendering

#: Seconds without the end of the output after which the kernel is asked whether there is more to come.
_ASK_AFTER: Final = 2.0
#: Seconds for a subscription to reach the engine before it is made to speak again.
_SPEAK: Final = 0.3
#: Messages handled before others get their turn.
_TURN: Final = 5
#: ipykernel takes this answer for the end of the input.
_END_OF_INPUT: Final = "\x04"


class Front(Page, Protocol):
    """Where a program's output goes, and its input comes from."""

    async def input(self, prompt: str, password: bool) -> str | None:
        """One line without its end, None at the end of the input. Cancelled when nobody waits any more."""


@attrs.frozen
class Program:
    """`text` is a cell of IPython, whose last value is shown; or with a `name` the content of a file. `args` become
    sys.argv[1:]."""

    text: str
    name: str | None = None
    args: Sequence[str] = ()


class Execution:
    """One program on one engine. `alone`: nobody else uses the engine, so all its output is the program's."""

    def __init__(self, file: Path, program: Program, front: Front, alone: bool = True) -> None:
        self._program = program
        self._front = front
        self._rendering = Rendering(front)
        self._alone = alone
        self._context = zmq.asyncio.Context()
        # ZeroMQ drops what exceeds this: rather have it wait here while the terminal or pipe is slow.
        self._context.setsockopt(zmq.RCVHWM, 0)
        self._context.setsockopt(zmq.LINGER, 0)
        self._client = AsyncKernelClient(context=self._context)
        self._client.load_connection_file(str(file))
        self._request = ""
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._idle: dict[str, asyncio.Event] = {}
        self._heard = asyncio.Event()
        self._said = asyncio.Event()

    async def run(self) -> int:
        """Run it; the exit code as Python would give it: 130 after an interrupt."""
        client = self._client
        client.start_channels(shell=True, iopub=True, stdin=True, hb=False, control=False)
        reading = (self._shell, self._iopub, self._stdin)
        readers: list[asyncio.Task[Any]] = [asyncio.create_task(read()) for read in reading]
        work = asyncio.create_task(self._work())
        try:
            done, _ = await asyncio.wait([work, *readers], return_when=asyncio.FIRST_COMPLETED)
            for task in readers:
                if task in done:
                    task.result()
            return await work
        finally:
            for task in (work, *readers):
                task.cancel()
            await asyncio.gather(work, *readers, return_exceptions=True)
            client.stop_channels()
            self._context.destroy(linger=0)

    async def quiet(self, seconds: float) -> None:
        """Returns when nothing was heard for so long: what a dead engine had said last has been passed on."""
        with contextlib.suppress(TimeoutError):
            while True:
                self._said.clear()
                await asyncio.wait_for(self._said.wait(), seconds)

    # -- what is asked ----------------------------------------------------------------------------------------------

    async def _work(self) -> int:
        await self._ready()
        program = self._program
        if self._alone:
            self._send("execute_request", _silently(snippets.capture()))
        if program.name is None:
            self._send("execute_request", _silently(snippets.prepare(program.args)))
            reply = await self._execute({"code": program.text, "user_expressions": {}})
            if reply["status"] == "error" and reply.get("ename") == "KeyboardInterrupt":
                code = 130
            else:
                code = int(reply["status"] != "ok")
            end = await self._reply(self._send("execute_request", _silently(snippets.finish())))
            left, words = _result(end, [code, None])
            exited = reply.get("ename") == "SystemExit"
            code = left if exited else code
            words = words if exited else None
        else:
            reply = await self._execute({"code": snippets.script(program.text, program.name, program.args)})
            fallback = [130 if reply.get("ename") == "KeyboardInterrupt" else 1, None]
            code, words = _result(reply, fallback)
        if words is not None:
            await self._front.stream("stderr", f"{words}\n")
        return int(code) & 0xFF

    async def _ready(self) -> None:
        """The kernel answers, and this front end hears what it says."""
        while not self._heard.is_set():
            request = self._send("kernel_info_request", {})
            await self._reply(request)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), _SPEAK)

    async def _execute(self, content: dict[str, Any]) -> dict[str, Any]:
        """The reply, once all output is there too."""
        told = {"silent": False, "store_history": False, "allow_stdin": True, "stop_on_error": False}
        self._request = self._send(
            "execute_request", {"user_expressions": {"result": snippets.RESULT}, **told, **content}
        )
        idle = self._idle[self._request]
        reply = await self._reply(self._request)
        for page in reply.get("payload", []):
            text = page.get("data", {}).get("text/plain")
            if page.get("source") == "page" and text:
                await self._front.result(text)
        while not idle.is_set():
            # The kernel drops output that it cannot get rid of, and the word that it is idle with it.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(idle.wait(), _ASK_AFTER)
                break
            probe = self._idle[self._send("kernel_info_request", {})]
            waiting = [asyncio.create_task(event.wait()) for event in (idle, probe)]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
            if probe.is_set():
                break
        return reply

    def _send(self, kind: str, content: dict[str, Any]) -> str:
        message = self._client.session.msg(kind, content)
        request = str(message["header"]["msg_id"])
        self._replies[request] = asyncio.get_running_loop().create_future()
        self._idle[request] = asyncio.Event()
        self._client.shell_channel.send(message)
        return request

    async def _reply(self, request: str) -> dict[str, Any]:
        return await self._replies[request]

    # -- what is heard ----------------------------------------------------------------------------------------------

    async def _shell(self) -> None:
        while True:
            message = await self._client.get_shell_msg(timeout=None)
            waiting = self._replies.get(message["parent_header"].get("msg_id", ""))
            if waiting is not None and not waiting.done():
                waiting.set_result(message["content"])

    async def _iopub(self) -> None:
        count = 0
        while True:
            count += 1
            if count % _TURN == 0:
                # Receiving what is there already does not let anybody else run, the link among them, and what the
                # link does not read soon enough the kernel drops.
                await asyncio.sleep(0)
            parts = await self._client.iopub_channel.socket.recv_multipart()
            _, parts = self._client.session.feed_identities(parts)
            message = self._client.session.deserialize(parts)
            self._heard.set()
            self._said.set()
            parent = message["parent_header"].get("msg_id", "")
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle" and parent in self._idle:
                self._idle[parent].set()
            elif self._request and (parent == self._request or (self._alone and kind == "stream")):
                await self._rendering.show(kind, content)

    async def _stdin(self) -> None:
        while True:
            message = await self._client.get_stdin_msg(timeout=None)
            if message["msg_type"] != "input_request" or message["parent_header"].get("msg_id") != self._request:
                continue
            content = message["content"]
            line = self._front.input(content["prompt"], bool(content.get("password")))
            asked: asyncio.Future[Any] = asyncio.ensure_future(line)
            # An interrupt ends the program while it waits for input.
            over: asyncio.Future[Any] = self._replies[self._request]
            try:
                await asyncio.wait([asked, over], return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    said = asked.result()
                    self._client.input(_END_OF_INPUT if said is None else said)
            finally:
                asked.cancel()


def _silently(code: str) -> dict[str, Any]:
    told = {"silent": True, "store_history": False, "allow_stdin": False, "stop_on_error": False}
    return {"code": code, "user_expressions": {"result": snippets.RESULT}, **told}


def _result(reply: dict[str, Any], fallback: list[Any]) -> list[Any]:
    said = reply.get("user_expressions", {}).get("result", {})
    if said.get("status") == "ok":
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            code, words = ast.literal_eval(said["data"]["text/plain"])
            return [int(code), words]
    return fallback
