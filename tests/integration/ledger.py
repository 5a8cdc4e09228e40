"""The checker: what was published, what each subscriber received, and whether that keeps the promises. Pure.

The promises (shared words in DESIGN.md): what was acknowledged to its publisher reaches every subscriber of the channel
once; all subscribers see one order; the publications of one connection keep theirs. What was not acknowledged may
appear or not, but at most once, and to all or to none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

_EXAMPLES = 10


class Message(NamedTuple):
    """A publication as its publisher knows it: its `number`-th."""

    publisher: str
    number: int


class Arrival(NamedTuple):
    """A message as a subscriber received it, with the connection that the server says it was published through."""

    message: Message
    connection: str = ""


Published = Mapping[Message, bool]
"""What was published in a channel, and whether it was acknowledged."""

Arrivals = Mapping[str, Sequence[Arrival]]
"""What each subscriber of a channel received, in order. Each subscribed before the first publication."""


@dataclass
class Report:
    """The counts, and the first few faults in words."""

    published: int = 0
    acknowledged: int = 0
    delivered: int = 0
    lost: int = 0
    """Acknowledged, and not received by a subscriber; counted per subscriber."""
    torn: int = 0
    """Not acknowledged, received by some subscribers and not by this one."""
    duplicated: int = 0
    """Received again."""
    reordered: int = 0
    """Received after a later one of the same connection."""
    disputed: int = 0
    """Received in another order than by the subscriber who received most."""
    invented: int = 0
    """Received, and never published in this channel."""
    faults: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.torn or self.duplicated or self.reordered or self.disputed or self.invented)

    def note(self, kind: str, channel: str, subscriber: str, message: Message) -> None:
        """Count a fault."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.faults) < _EXAMPLES:
            self.faults += (f"{kind}: {message.publisher} #{message.number} at {subscriber} in {channel}",)

    def __str__(self) -> str:
        counts = {name: value for name, value in self.as_dict().items() if name != "faults"}
        return ", ".join(f"{name} {value}" for name, value in counts.items())

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)


def check(published: Mapping[str, Published], arrivals: Mapping[str, Arrivals]) -> Report:
    """Compare what was published with what arrived, channel by channel."""
    report = Report()
    for channel in sorted(published.keys() | arrivals.keys()):
        _check_channel(report, channel, published.get(channel, {}), arrivals.get(channel, {}))
    return report


def _check_channel(report: Report, channel: str, published: Published, arrivals: Arrivals) -> None:
    report.published += len(published)
    report.acknowledged += sum(published.values())
    once = {subscriber: _first_arrivals(received) for subscriber, received in arrivals.items()}
    seen = {message for received in once.values() for message in received}
    longest = max(once.values(), key=lambda received: len(received), default={})
    rank = {message: index for index, message in enumerate(longest)}
    for subscriber, received in arrivals.items():
        report.delivered += len(received)
        counts = Counter(arrival.message for arrival in received)
        for message, count in counts.items():
            if message not in published:
                report.note("invented", channel, subscriber, message)
            for _ in range(count - 1):
                report.note("duplicated", channel, subscriber, message)
        for message, was_acknowledged in published.items():
            if message not in counts and (was_acknowledged or message in seen):
                report.note("lost" if was_acknowledged else "torn", channel, subscriber, message)
        for message in _behind_its_connection(once[subscriber]):
            report.note("reordered", channel, subscriber, message)
        for message in _descents([message for message in once[subscriber] if message in rank], rank):
            report.note("disputed", channel, subscriber, message)


def _first_arrivals(received: Sequence[Arrival]) -> dict[Message, str]:
    """The messages without repetitions, in order, with their connections."""
    first: dict[Message, str] = {}
    for message, connection in received:
        first.setdefault(message, connection)
    return first


def _behind_its_connection(received: Mapping[Message, str]) -> list[Message]:
    """Messages that came after one which their connection published later."""
    latest: dict[tuple[str, str], int] = {}
    behind = []
    for message, connection in received.items():
        key = (message.publisher, connection)
        if message.number < latest.get(key, message.number):
            behind.append(message)
        latest[key] = max(message.number, latest.get(key, message.number))
    return behind


def _descents(messages: Sequence[Message], rank: Mapping[Message, int]) -> list[Message]:
    """Messages that come before their predecessor in the order of `rank`."""
    return [later for earlier, later in pairwise(messages) if rank[later] < rank[earlier]]
