"""What a test sees of a client, whichever SDK it is of."""

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any, NamedTuple

from ..waiting import until

COMMAND_SECONDS = 30.0
"""An SDK waits this long for a reply: longer than a node tries to publish (publisher.timeout_seconds)."""

RECONNECT_SECONDS = (0.05, 0.5)
"""Least and greatest pause between attempts of an SDK to connect or subscribe."""


class CommandFailedError(Exception):
    """A command was answered with an error, or with none: `code` is the server's or the SDK's own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class Received(NamedTuple):
    """A publication, with the id of the connection that it was published through."""

    data: Any
    offset: int
    connection: str


class History(NamedTuple):
    """The answer to a history command."""

    publications: list[Received]
    offset: int
    epoch: str


class Subscribed(NamedTuple):
    """One time that a subscription was established."""

    was_recovering: bool
    recovered: bool


class Ended(NamedTuple):
    """Why a connection or a subscription ended, or was (re)started."""

    code: int
    reason: str


class Client(ABC):
    """One client of an SDK. It reconnects and recovers by itself; what it saw is in its fields."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: list[str] = []
        """The id of each connection it has had."""
        self.interruptions: list[Ended] = []
        """Why it began to connect, each time but the first."""
        self.disconnected: list[Ended] = []
        """Why it gave up: at most one."""
        self.subscribed: defaultdict[str, list[Subscribed]] = defaultdict(list)
        self.unsubscribed: defaultdict[str, list[Ended]] = defaultdict(list)
        self.publications: defaultdict[str, list[Received]] = defaultdict(list)
        """What it received, by channel, in order."""
        self._is_first = True

    def data(self, channel: str) -> list[Any]:
        """The data of what it received."""
        return [publication.data for publication in self.publications[channel]]

    async def connected(self, times: int = 1) -> None:
        """Wait until it has been connected so many times."""
        await until(lambda: len(self.connections) >= times, f"{self.name} connected {times} times")

    async def subscribe(self, channel: str) -> None:
        """Subscribe, and wait until it is."""
        await self._subscribe(channel)
        await self.has_subscribed(channel)

    async def has_subscribed(self, channel: str, times: int = 1) -> Subscribed:
        """Wait until it has been subscribed so many times; return the last."""
        subscribed = self.subscribed[channel]
        await until(lambda: len(subscribed) >= times, f"{self.name} subscribed to {channel} {times} times")
        return subscribed[-1]

    async def has_received(self, channel: str, number: int) -> list[Received]:
        """Wait until it has received so many publications, and return all it has."""
        publications = self.publications[channel]
        await until(lambda: len(publications) >= number, f"{self.name} received {number} publications in {channel}")
        return publications

    @abstractmethod
    async def open(self) -> None:
        """Begin to connect."""

    @abstractmethod
    async def publish(self, channel: str, data: Any) -> None:
        """Publish, and wait for the acknowledgement. Raises CommandFailedError."""

    @abstractmethod
    async def history(
        self, channel: str, limit: int = -1, *, since: tuple[int, str] | None = None, reverse: bool = False
    ) -> History:
        """Read the channel's stream. Raises CommandFailedError."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect for good."""

    @abstractmethod
    async def _subscribe(self, channel: str) -> None:
        """Begin to subscribe."""

    def note_connecting(self, code: int, reason: str) -> None:
        """Record why it connects."""
        if not self._is_first:
            self.interruptions.append(Ended(code, reason))
        self._is_first = False
