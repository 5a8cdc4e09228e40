"""A crowd of raw protocol clients in a process of its own, light enough for hundreds on one core.

    python -m tests.integration.crowd talk  URL    each client subscribes to one channel and publishes in it
    python -m tests.integration.crowd visit URL    clients subscribe to every channel and drop, half of them abruptly

Prints JSON lines on standard output: `talk` one summary; `visit` one when all are subscribed, and goes on when a line
comes in on standard input.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from deploy.cluster.environment import ROOT

from .ledger import Arrival, Message, check
from .waiting import until

_OPENING_AT_ONCE = 50
_REPLY_SECONDS = 30.0


class Member:
    """One client of the crowd."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.node = ""
        self.published: defaultdict[str, dict[Message, bool]] = defaultdict(dict)
        self.arrivals: defaultdict[str, list[Arrival]] = defaultdict(list)
        self.ending: str | None = None
        """Why the connection ended, if it did."""
        self._url = url
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = 0

    async def open(self) -> None:
        """Connect."""
        self._socket = await connect(
            self._url, proxy=None, compression=None, ping_interval=None, open_timeout=_REPLY_SECONDS
        )
        self._reader = asyncio.create_task(self._read(self._socket))
        (reply,) = await self.call(("connect", {}))
        self.node = reply["connect"]["node"]

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to these channels with one frame."""
        for reply in await self.call(*(("subscribe", {"channel": channel}) for channel in channels)):
            if "error" in reply:
                raise RuntimeError(f"{self.name}: {reply}")

    async def talk(self, channel: str, interval: float, times: int) -> None:
        """Publish so many times at a steady rate; acknowledgements come when they come."""
        pending = []
        start = time.monotonic() + random.uniform(0, interval)
        for number in range(times):
            await asyncio.sleep(start + number * interval - time.monotonic())
            pending.append(asyncio.create_task(self.publish(channel, Message(self.name, number))))
        await asyncio.gather(*pending)

    async def has_received(self, channel: str, message: Message) -> None:
        """Wait until a message has arrived. Raises AssertionError."""
        arrivals = self.arrivals[channel]
        await until(lambda: arrivals and arrivals[-1].message == message, f"the last publication at {self.name}")

    async def call(self, *commands: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Send commands in one frame and return their replies."""
        assert self._socket
        lines, calls = [], []
        for method, parameters in commands:
            self._ids += 1
            future = self._calls[self._ids] = asyncio.get_running_loop().create_future()
            calls.append(future)
            lines.append(json.dumps({"id": self._ids, method: parameters}))
        await self._socket.send("\n".join(lines))
        async with asyncio.timeout(_REPLY_SECONDS):
            return list(await asyncio.gather(*calls))

    async def close(self) -> None:
        """Say goodbye."""
        assert self._socket
        assert self._reader
        await self._socket.close()
        await self._reader

    async def abort(self) -> None:
        """Break the connection."""
        assert self._socket
        assert self._reader
        self._socket.transport.abort()
        await self._reader

    async def publish(self, channel: str, message: Message) -> None:
        """Publish, and note whether it was acknowledged."""
        self.published[channel][message] = False
        data = {"by": message.publisher, "number": message.number}
        try:
            (reply,) = await self.call(("publish", {"channel": channel, "data": data}))
        except (TimeoutError, ConnectionClosed):
            return
        self.published[channel][message] = "publish" in reply

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for frame in socket:
                for line in frame.splitlines():
                    await self._take(socket, json.loads(line))
            self.ending = f"{socket.close_code} {socket.close_reason}"
        except ConnectionClosed as error:
            self.ending = str(error)
        for call in self._calls.values():
            call.cancel()

    async def _take(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        match message:
            case {"id": number}:
                call = self._calls.pop(number)
                if not call.done():
                    call.set_result(message)
            case {"push": {"channel": channel, "pub": publication}}:
                data = publication["data"]
                arrival = Arrival(Message(data["by"], data["number"]), publication["info"]["client"])
                self.arrivals[channel].append(arrival)
            case {"push": push}:
                raise RuntimeError(f"{self.name}: {push}")
            case _:
                await socket.send("{}")  # a ping


async def gathered(members: Sequence[Member], channels: Sequence[Sequence[str]]) -> None:
    """Open all members and subscribe each to its channels."""
    door = asyncio.Semaphore(_OPENING_AT_ONCE)

    async def enter(member: Member, wanted: Sequence[str]) -> None:
        async with door:
            await member.open()
            await member.subscribe(wanted)

    await asyncio.gather(*(enter(member, wanted) for member, wanted in zip(members, channels, strict=True)))


async def talk(arguments: argparse.Namespace) -> None:
    """Let everybody publish, wait until everything has arrived, and print the counts."""
    channels = [f"crowd-{random.getrandbits(64):x}-{index}" for index in range(arguments.channels)]
    members = [Member(f"member {index}", arguments.url) for index in range(arguments.clients)]
    seats = {channel: members[index :: len(channels)] for index, channel in enumerate(channels)}
    await gathered(members, [[channels[index % len(channels)]] for index in range(len(members))])

    times = int(arguments.rate * arguments.seconds)
    start = time.monotonic()
    talking = [member.talk(channel, 1 / arguments.rate, times) for channel in channels for member in seats[channel]]
    await asyncio.gather(*talking)
    seconds = time.monotonic() - start

    # Behind everything else of a channel comes one last publication; when it has arrived, so has all that will.
    last = {channel: Message(seats[channel][0].name, times) for channel in channels}
    await asyncio.gather(*(seats[channel][0].publish(channel, message) for channel, message in last.items()))
    arrived = [member.has_received(channel, last[channel]) for channel in channels for member in seats[channel]]
    await asyncio.gather(*arrived, return_exceptions=True)  # who lacks it is counted below

    published = {
        channel: {k: v for one in seats[channel] for k, v in one.published[channel].items()} for channel in channels
    }
    arrivals = {channel: {one.name: one.arrivals[channel] for one in seats[channel]} for channel in channels}
    summary = check(published, arrivals).as_dict()
    summary["interrupted"] = sum(member.ending is not None for member in members)
    summary["nodes"] = list(Counter(member.node for member in members).values())
    summary["seconds"] = seconds
    for member in members:
        await member.close()
    print(json.dumps(summary), flush=True)


async def visit(arguments: argparse.Namespace) -> None:
    """Fill every node with subscriptions; when told to, drop them all, half of them abruptly."""
    channels = [f"visit-{random.getrandbits(64):x}-{index}" for index in range(arguments.channels)]
    members = [Member(f"visitor {index}", arguments.url) for index in range(arguments.clients)]
    await gathered(members, [channels] * len(members))
    print(json.dumps({"channels": channels}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(member.abort() if index % 2 else member.close() for index, member in enumerate(members)))


@asynccontextmanager
async def crowd(what: str, url: str, **options: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run this file in a process of its own, with its input and output piped. It ends well, or this raises."""
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.integration.crowd", what, url, *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    assert process.stdin
    try:
        yield process
        process.stdin.close()
        assert await process.wait() == 0, "the crowd failed; what it said is on standard error"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="crowd")
    parser.add_argument("what", choices=["talk", "visit"])
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--rate", type=float, default=2.0, help="publications a second and client")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    uvloop.run({"talk": talk, "visit": visit}[arguments.what](arguments))


if __name__ == "__main__":
    main()
