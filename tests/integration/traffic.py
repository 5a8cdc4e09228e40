"""Traffic that goes on while something breaks, and the report on what became of it."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from types import TracebackType
from typing import Any, Self

from .ledger import Arrival, Message, Published, Report, check
from .sdks import Client, CommandFailedError, Received
from .waiting import until

_INTERVAL_SECONDS = 0.03
_RECOVERY_SECONDS = 60.0  # RabbitMQ starts in 10 s, on a busy machine in 30


class Traffic:
    """Every client publishes in all channels in turn, and subscribes to all, as an async context manager.

    A client does not wait for one acknowledgement before it publishes again. `finish` ends the publishing and waits
    until the last publication has reached everybody.
    """

    def __init__(self, clients: Sequence[Client], channels: Sequence[str], record: Callable[[Report], None]) -> None:
        self._clients = clients
        self._record = record
        self._published: dict[str, dict[Message, bool]] = {channel: {} for channel in channels}
        self._numbers: defaultdict[str, int] = defaultdict(int)
        self._publishers: list[asyncio.Task[None]] = []
        self._commands: set[asyncio.Task[None]] = set()
        self._ends = asyncio.Event()

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(client.subscribe(one) for client in self._clients for one in self._published))
        self._publishers = [asyncio.create_task(self._publish_on(client)) for client in self._clients]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in (*self._publishers, *self._commands):
            task.cancel()
        await asyncio.gather(*self._publishers, *self._commands, return_exceptions=True)

    async def flows(self) -> None:
        """Wait until every client has published once more in each channel, and everybody has received that."""
        await asyncio.gather(*(self._flows_in(channel) for channel in self._published))

    async def finish(self) -> Report:
        """Stop, wait until everything has arrived that will, and report."""
        self._ends.set()
        await asyncio.gather(*self._publishers)
        await asyncio.gather(*self._commands)
        # Behind everything else of a channel comes one last publication of each client: nothing is under way then.
        await self.flows()
        report = report_on(self._clients, self._published)
        self._record(report)
        return report

    async def _publish_on(self, client: Client) -> None:
        for channel in cycle(self._published):
            self._begin_to_publish(client, channel)
            await asyncio.sleep(_INTERVAL_SECONDS)  # the rate of the traffic
            if self._ends.is_set():
                return

    async def _flows_in(self, channel: str) -> None:
        published = (self._publish_until_acknowledged(client, channel) for client in self._clients)
        messages = await asyncio.gather(*published)
        await asyncio.gather(*(self._arrive(client, channel, set(messages)) for client in self._clients))

    async def _publish_until_acknowledged(self, client: Client, channel: str) -> Message:
        while True:
            message, command = self._begin_to_publish(client, channel)
            await command
            if self._published[channel][message]:
                return message

    def _begin_to_publish(self, client: Client, channel: str) -> tuple[Message, asyncio.Task[None]]:
        # Always as a task: tasks begin in the order of their numbers.
        self._numbers[client.name] += 1
        message = Message(client.name, self._numbers[client.name])
        command = asyncio.create_task(self._publish(client, channel, message))
        self._commands.add(command)
        command.add_done_callback(self._commands.discard)
        return message, command

    async def _publish(self, client: Client, channel: str, message: Message) -> None:
        self._published[channel][message] = False
        try:
            await client.publish(channel, data_of(message))
        except CommandFailedError:
            return
        self._published[channel][message] = True

    async def _arrive(self, client: Client, channel: str, missing: set[Message]) -> None:
        received = client.publications[channel]
        looked_at = 0

        def have_arrived() -> bool:
            nonlocal looked_at
            missing.difference_update(_message(one) for one in received[looked_at:])
            looked_at = len(received)
            return not missing

        await until(have_arrived, f"{missing} at {client.name} in {channel}", within=_RECOVERY_SECONDS)


async def finished(traffic: Traffic) -> Report:
    """Let the traffic go on for a moment, end it, and see that no promise was broken."""
    await traffic.flows()
    report = await traffic.finish()
    assert report.is_clean, (str(report), report.faults)
    assert report.acknowledged > 100
    return report


def report_on(clients: Sequence[Client], published: Mapping[str, Published]) -> Report:
    """Check what the clients received against what was published, by channel."""
    arrivals = {
        channel: {client.name: [_arrival(one) for one in client.publications[channel]] for client in clients}
        for channel in published
    }
    return check(published, arrivals)


def data_of(message: Message) -> dict[str, Any]:
    """What is published for a message."""
    return {"by": message.publisher, "number": message.number}


def _message(received: Received) -> Message:
    return Message(received.data["by"], received.data["number"])


def _arrival(received: Received) -> Arrival:
    return Arrival(_message(received), received.connection)
