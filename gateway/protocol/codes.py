"""The two tables of codes, and nowhere else a number. Source: the Centrifuge client protocol (centrifugal.dev).

Errors go into replies and leave the connection as it is; disconnects are WebSocket close codes. Clients reconnect
after 3000-3499 and 4000-4499, and stay away after 3500-3999 and 4500-4999.
"""

from dataclasses import dataclass, replace
from typing import Self

_REASON_MAX_BYTES = 123  # RFC 6455 section 5.5.1: a close frame holds 125 bytes, two of them the code


@dataclass(frozen=True)
class ReplyError:
    """An error in a reply; `temporary` invites the client to try again."""

    code: int
    message: str
    temporary: bool = False

    def because(self, detail: str) -> Self:
        """Return this error with a detail after its message."""
        return replace(self, message=f"{self.message}: {detail}")


INTERNAL = ReplyError(100, "internal server error", temporary=True)
UNAUTHORIZED = ReplyError(101, "unauthorized")
UNKNOWN_CHANNEL = ReplyError(102, "unknown channel")
PERMISSION_DENIED = ReplyError(103, "permission denied")
METHOD_NOT_FOUND = ReplyError(104, "method not found")
ALREADY_SUBSCRIBED = ReplyError(105, "already subscribed")
LIMIT_EXCEEDED = ReplyError(106, "limit exceeded")
BAD_REQUEST = ReplyError(107, "bad request")
NOT_AVAILABLE = ReplyError(108, "not available")
TOKEN_EXPIRED = ReplyError(109, "token expired")
TOO_MANY_REQUESTS = ReplyError(111, "too many requests", temporary=True)
UNRECOVERABLE_POSITION = ReplyError(112, "unrecoverable position")


@dataclass(frozen=True)
class Disconnect:
    """Why the server closes a connection: WebSocket close code and reason."""

    code: int
    reason: str

    def because(self, detail: str) -> Self:
        """Return this disconnect with a detail after its reason, cut to what a close frame holds."""
        reason = f"{self.reason}: {detail}".encode()[:_REASON_MAX_BYTES].decode(errors="ignore")
        return replace(self, reason=reason)


SHUTDOWN = Disconnect(3001, "shutdown")
INTERNAL_SERVER_ERROR = Disconnect(3004, "internal server error")
CONNECTION_EXPIRED = Disconnect(3005, "connection expired")
SLOW = Disconnect(3008, "slow")
NO_PONG = Disconnect(3012, "no pong")
INVALID_TOKEN = Disconnect(3500, "invalid token")
MALFORMED = Disconnect(3501, "bad request")
STALE = Disconnect(3502, "stale")
INAPPROPRIATE_PROTOCOL = Disconnect(3506, "inappropriate protocol")


@dataclass(frozen=True)
class Unsubscribe:
    """Why the server ends a subscription; the client resubscribes when the code is 2500 or more."""

    code: int
    reason: str


INSUFFICIENT_STATE = Unsubscribe(2500, "insufficient state")


class CommandError(Exception):
    """A command failed: its reply carries this error."""

    def __init__(self, error: ReplyError) -> None:
        super().__init__(error.message)
        self.error = error


class ProtocolError(Exception):
    """The client broke the protocol: the connection ends with this disconnect."""

    def __init__(self, disconnect: Disconnect) -> None:
        super().__init__(disconnect.reason)
        self.disconnect = disconnect
