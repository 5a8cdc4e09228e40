"""Commands, replies and pushes of the client protocol, as tagged types. Source: client.proto of the Centrifuge SDKs.

Field names are those on the wire. `Raw` fields are JSON in place: their bytes pass through, never decoded.
"""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Raw

Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A uint64 in client.proto; clients and Redis scripts count in less."""


class _Wire(msgspec.Struct, omit_defaults=True):
    """A message on the wire; fields at their default are left out."""


class StreamPosition(_Wire):
    """A place in a channel's stream."""

    offset: Offset = 0
    epoch: str = ""


class ConnectRequest(_Wire):
    """First command of a connection."""

    method: ClassVar[str] = "connect"
    token: str = ""
    data: Raw = Raw()
    name: str = ""
    version: str = ""


class SubscribeRequest(_Wire):
    """Follow a channel, from `epoch` and `offset` when `recover` is set."""

    method: ClassVar[str] = "subscribe"
    channel: str
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: Offset = 0
    positioned: bool = False
    recoverable: bool = False
    flag: int = 0


class UnsubscribeRequest(_Wire):
    """Follow a channel no longer."""

    method: ClassVar[str] = "unsubscribe"
    channel: str


class PublishRequest(_Wire):
    """Say something in a channel."""

    method: ClassVar[str] = "publish"
    channel: str
    data: Raw = Raw()


class HistoryRequest(_Wire):
    """Read a channel's stream. `limit` 0: only its position; -1: as much as one reply may hold."""

    method: ClassVar[str] = "history"
    channel: str
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False


class SendRequest(_Wire):
    """A message for the server, without a reply."""

    method: ClassVar[str] = "send"
    data: Raw = Raw()


class PingRequest(_Wire):
    """Ask for a reply, whatever it says."""

    method: ClassVar[str] = "ping"


class LaterRequest(_Wire):
    """A method of the protocol that this server does not offer yet."""

    method: ClassVar[str] = "unavailable"


class UnknownRequest(_Wire):
    """A method that the protocol does not have."""

    method: ClassVar[str] = "unknown"


class MalformedRequest(_Wire):
    """A command with an id whose content is wrong; `detail` names the field."""

    method: ClassVar[str] = "malformed"
    detail: str


class Pong(_Wire):
    """The empty object: the client's answer to a ping."""

    method: ClassVar[str] = "pong"


Request = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | HistoryRequest
    | SendRequest
    | PingRequest
    | LaterRequest
    | UnknownRequest
    | MalformedRequest
    | Pong
)


class Command(msgspec.Struct):
    """What a client asks; `id` 0 asks for no reply."""

    id: int
    request: Request


class ClientInfo(_Wire):
    """Who published."""

    user: str = ""
    client: str = ""
    conn_info: Raw | None = None


class PublicationMessage(_Wire):
    """A publication as clients see it."""

    data: Raw
    info: ClientInfo | None = None
    offset: int = 0
    tags: dict[str, str] | None = None
    time: int = 0


class ConnectResult(_Wire):
    """The connection is established; `ping` is seconds between pings."""

    client: str
    version: str
    ping: int = 0
    pong: bool = False
    node: str = ""
    session: str = ""


class SubscribeResult(_Wire):
    """The subscription is established at `epoch` and `offset`.

    After a successful recovery `offset` is the position recovered from, and `publications` lead on from there.
    """

    recoverable: bool = False
    epoch: str = ""
    publications: list[PublicationMessage] = []
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    was_recovering: bool = False


class UnsubscribeResult(_Wire):
    """Done."""


class PublishResult(_Wire):
    """The publication is stored durably."""


class HistoryResult(_Wire):
    """A part of a stream, and the position of its end."""

    publications: list[PublicationMessage] = []
    epoch: str = ""
    offset: int = 0


class PingResult(_Wire):
    """Here."""


class Error(_Wire):
    """Why a command failed."""

    code: int
    message: str
    temporary: bool = False


class Reply(_Wire):
    """The answer to the command with this id: one of the results, or an error."""

    id: int
    error: Error | None = None
    connect: ConnectResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: UnsubscribeResult | None = None
    publish: PublishResult | None = None
    history: HistoryResult | None = None
    ping: PingResult | None = None


class UnsubscribePush(_Wire):
    """The server ended a subscription."""

    code: int
    reason: str


class Push(_Wire):
    """Something happened in a channel."""

    channel: str = ""
    pub: PublicationMessage | None = None
    unsubscribe: UnsubscribePush | None = None


class PushReply(_Wire):
    """The frame around a push."""

    push: Push
