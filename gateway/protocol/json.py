"""The JSON codec: frames hold one or more objects joined by a line break, in both directions."""

import json as stdlib_json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from broker.envelope import Publication
from gateway.protocol.codes import MALFORMED, ProtocolError, ReplyError, Unsubscribe
from gateway.protocol.messages import (
    ClientInfo,
    Command,
    ConnectRequest,
    Error,
    HistoryRequest,
    LaterRequest,
    MalformedRequest,
    PingRequest,
    Pong,
    PublicationMessage,
    PublishRequest,
    Push,
    PushReply,
    Reply,
    Request,
    SendRequest,
    SubscribeRequest,
    UnknownRequest,
    UnsubscribePush,
    UnsubscribeRequest,
)

PING = b"{}"


class _WireCommand(msgspec.Struct):
    """A command as it is written: one field a method; the last five are methods not offered yet."""

    id: int = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    history: HistoryRequest | None = None
    send: SendRequest | None = None
    ping: PingRequest | None = None
    presence: Any = msgspec.UNSET
    presence_stats: Any = msgspec.UNSET
    rpc: Any = msgspec.UNSET
    refresh: Any = msgspec.UNSET
    sub_refresh: Any = msgspec.UNSET


class _WireId(msgspec.Struct):
    id: int = 0


_MAX_ID = 2**32 - 1  # client.proto: uint32
_commands = msgspec.json.Decoder(_WireCommand)
_ids = msgspec.json.Decoder(_WireId)
_objects = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def decode_frame(text: str) -> Iterator[Command]:
    """Decode a frame's commands, in order. Raises ProtocolError at the first that cannot be answered."""
    for line in text.split("\n"):
        if line:
            yield _decode_command(line)


def _decode_command(line: str) -> Command:
    if line == "{}":
        return Command(0, Pong())
    try:
        wire = _commands.decode(line)
    except msgspec.ValidationError as error:
        return _decode_malformed(line, str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        return _decode_refused(line, error)
    offered = (wire.connect, wire.subscribe, wire.unsubscribe, wire.publish, wire.history, wire.send, wire.ping)
    requests: list[Request] = [request for request in offered if request is not None]
    later = (wire.presence, wire.presence_stats, wire.rpc, wire.refresh, wire.sub_refresh)
    if any(value is not msgspec.UNSET for value in later):
        requests.append(LaterRequest())
    if not 0 <= wire.id <= _MAX_ID:
        raise ProtocolError(MALFORMED.because(f"id must be from 0 to {_MAX_ID}"))
    if not requests:
        return _decode_unknown(line, wire.id)
    if len(requests) > 1:
        return _answerable(wire.id, MalformedRequest("a command holds one method"))
    if wire.id == 0 and wire.send is None:
        raise ProtocolError(MALFORMED.because("id must be above 0"))
    return Command(wire.id, requests[0])


def _decode_unknown(line: str, command_id: int) -> Command:
    if command_id == 0 and not _objects.decode(line):
        return Command(0, Pong())  # an empty object with white space in it
    return _answerable(command_id, UnknownRequest())


def _decode_malformed(line: str, detail: str) -> Command:
    try:
        command_id = _ids.decode(line).id
    except msgspec.ValidationError:
        command_id = 0
    except (msgspec.DecodeError, RecursionError) as error:  # the first decoder stopped before it came to this
        raise _not_json(error) from None
    return _answerable(command_id, MalformedRequest(detail), detail)


def _decode_refused(line: str, error: Exception) -> Command:
    """Answer what is JSON by its grammar, but no text: half a surrogate pair, as of a string cut within an emoji."""
    try:
        parsed = stdlib_json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _not_json(error) from None
    command_id = parsed.get("id") if isinstance(parsed, dict) else None
    return _answerable(command_id if type(command_id) is int else 0, MalformedRequest(f"no valid text: {error}"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _not_json(error: Exception) -> ProtocolError:
    detail = "nested too deep" if isinstance(error, RecursionError) else f"not JSON: {error}"
    return ProtocolError(MALFORMED.because(detail))


def _answerable(command_id: int, request: Request, detail: str = "id must be above 0") -> Command:
    if not 0 < command_id <= _MAX_ID:
        raise ProtocolError(MALFORMED.because(detail))
    return Command(command_id, request)


def encode_error(command_id: int, error: ReplyError) -> bytes:
    """Encode the reply of a failed command."""
    return encode(Reply(command_id, error=Error(error.code, error.message, error.temporary)))


def encode_unsubscribe(channel: str, unsubscribe: Unsubscribe) -> bytes:
    """Encode the push that ends a subscription."""
    return encode(PushReply(Push(channel, unsubscribe=UnsubscribePush(unsubscribe.code, unsubscribe.reason))))


def encode_publications(channel: str, publications: Sequence[Publication], *, with_offsets: bool) -> bytes:
    """Encode publications as pushes, joined for one frame."""
    messages = (publication_message(publication, with_offset=with_offsets) for publication in publications)
    return b"\n".join([encode(PushReply(Push(channel, pub=message))) for message in messages])


def publication_message(publication: Publication, *, with_offset: bool) -> PublicationMessage:
    """Turn a publication into what clients see of it; without history they see no offset."""
    info = publication.info
    return PublicationMessage(
        data=Raw(publication.data),
        info=ClientInfo(info.user, info.client, Raw(info.conn_info) if info.conn_info else None) if info else None,
        offset=publication.offset if with_offset else 0,
        tags=publication.tags,
        time=publication.time,
    )
