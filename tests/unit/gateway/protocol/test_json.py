"""Bytes become Commands or a ProtocolError, nothing else; replies and pushes become the JSON that the SDKs expect."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from broker.envelope import ClientInfo, Publication
from gateway.protocol.codes import INSUFFICIENT_STATE, MALFORMED, TOO_MANY_REQUESTS, UNAUTHORIZED, ProtocolError
from gateway.protocol.json import (
    PING,
    decode_frame,
    encode,
    encode_error,
    encode_publications,
    encode_unsubscribe,
    publication_message,
)
from gateway.protocol.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    LaterRequest,
    MalformedRequest,
    PingRequest,
    Pong,
    PublishRequest,
    Reply,
    Request,
    SendRequest,
    StreamPosition,
    SubscribeRequest,
    SubscribeResult,
    UnknownRequest,
    UnsubscribeRequest,
)

DEEP = "[" * 100_000 + "]" * 100_000


def decode(text: str) -> list[Command]:
    """Every command of a frame."""
    return list(decode_frame(text))


# What a client may say.

COMMANDS: list[tuple[str, Command]] = [
    ('{"id":1,"connect":{}}', Command(1, ConnectRequest())),
    (
        '{"id":1,"connect":{"token":"t","data":{"a":1},"name":"js","version":"5","subs":{},"headers":{"x":"y"}}}',
        Command(1, ConnectRequest("t", Raw(b'{"a":1}'), "js", "5")),
    ),
    ('{"id":2,"subscribe":{"channel":"c"}}', Command(2, SubscribeRequest("c"))),
    (
        '{"id":2,"subscribe":{"channel":"c","recover":true,"epoch":"e","offset":7,"positioned":true,'
        '"recoverable":true,"flag":2,"token":"t","join_leave":true,"data":1}}',
        Command(2, SubscribeRequest("c", "t", True, "e", 7, True, True, 2)),
    ),
    ('{"id":3,"unsubscribe":{"channel":"c"}}', Command(3, UnsubscribeRequest("c"))),
    ('{"id":4,"publish":{"channel":"c","data":"x"}}', Command(4, PublishRequest("c", Raw(b'"x"')))),
    ('{"id":4,"publish":{"channel":"c","data":null}}', Command(4, PublishRequest("c", Raw(b"null")))),
    ('{"id":4,"publish":{"channel":"c"}}', Command(4, PublishRequest("c", Raw()))),
    ('{"id":5,"history":{"channel":"c"}}', Command(5, HistoryRequest("c"))),
    (
        '{"id":5,"history":{"channel":"c","limit":-1,"since":{"offset":3,"epoch":"e"},"reverse":true}}',
        Command(5, HistoryRequest("c", -1, StreamPosition(3, "e"), True)),
    ),
    ('{"send":{"data":[1, 2]}}', Command(0, SendRequest(Raw(b"[1, 2]")))),
    ('{"id":6,"send":{"data":{}}}', Command(6, SendRequest(Raw(b"{}")))),
    ('{"id":7,"ping":{}}', Command(7, PingRequest())),
    ('{"id":8,"presence":{"channel":"c"}}', Command(8, LaterRequest())),
    ('{"id":8,"presence_stats":{"channel":"c"}}', Command(8, LaterRequest())),
    ('{"id":8,"rpc":{"method":"m","data":{}}}', Command(8, LaterRequest())),
    ('{"id":8,"rpc":null}', Command(8, LaterRequest())),
    ('{"id":8,"refresh":{"token":"t"}}', Command(8, LaterRequest())),
    ('{"id":8,"sub_refresh":{"channel":"c","token":"t"}}', Command(8, LaterRequest())),
    ('{"id":9,"dance":{}}', Command(9, UnknownRequest())),
    ('{"id":9}', Command(9, UnknownRequest())),
    ("{}", Command(0, Pong())),
    ("{ }", Command(0, Pong())),
    (" \t{\r} ", Command(0, Pong())),
    ('{"id":4294967295,"ping":{}}', Command(4_294_967_295, PingRequest())),
    (' { "ping" : { } , "id" : 7 } ', Command(7, PingRequest())),
    ('{"id":7,"ping":{"new":"field"},"another":[1]}', Command(7, PingRequest())),
]


@pytest.mark.parametrize(("text", "command"), COMMANDS)
def test_command_is_decoded(text: str, command: Command) -> None:
    assert decode(text) == [command]


@pytest.mark.parametrize("separator", ["\n", "\n\n", "\r\n", " \n "])
def test_commands_of_one_frame_are_decoded_in_order(separator: str) -> None:
    text = separator.join(['{"id":1,"ping":{}}', "{}", '{"id":2,"subscribe":{"channel":"c"}}', '{"send":{"data":1}}'])
    requests: list[Request] = [PingRequest(), Pong(), SubscribeRequest("c"), SendRequest(Raw(b"1"))]
    assert [command.request for command in decode(text)] == requests


@pytest.mark.parametrize("text", ["", "\n", "\n\n\n"])
def test_frame_without_a_command_says_nothing(text: str) -> None:
    assert decode(text) == []


def test_commands_before_a_broken_one_are_decoded() -> None:
    commands = decode_frame('{"id":1,"ping":{}}\nnonsense\n{"id":2,"ping":{}}')
    assert next(commands) == Command(1, PingRequest())
    with pytest.raises(ProtocolError):
        next(commands)


# What cannot be understood, but answered: it has an id.

ANSWERABLE: list[tuple[str, str]] = [
    ('{"id":1,"connect":5}', "$.connect"),
    ('{"id":1,"connect":[]}', "$.connect"),
    ('{"id":1,"connect":{"token":5}}', "$.connect.token"),
    ('{"id":1,"subscribe":{}}', "channel"),
    ('{"id":1,"subscribe":{"channel":5}}', "$.subscribe.channel"),
    ('{"id":1,"subscribe":{"channel":"c","offset":"x"}}', "$.subscribe.offset"),
    ('{"id":1,"subscribe":{"channel":"c","offset":1.5}}', "$.subscribe.offset"),
    ('{"id":1,"subscribe":{"channel":"c","recover":1}}', "$.subscribe.recover"),
    ('{"id":1,"unsubscribe":{"channel":null}}', "$.unsubscribe.channel"),
    ('{"id":1,"publish":{"data":1}}', "channel"),
    ('{"id":1,"publish":"c"}', "$.publish"),
    ('{"id":1,"history":{"channel":"c","limit":"all"}}', "$.history.limit"),
    ('{"id":1,"history":{"channel":"c","since":5}}', "$.history.since"),
    ('{"id":1,"history":{"channel":"c","since":{"offset":-1}}}', "$.history.since.offset"),
    ('{"id":1,"history":{"channel":"c","since":{"offset":9223372036854775808}}}', "$.history.since.offset"),
    ('{"id":1,"subscribe":{"channel":"c","offset":-1}}', "$.subscribe.offset"),
    ('{"id":1,"subscribe":{"channel":"c","offset":99999999999999999999}}', "$.subscribe.offset"),
    ('{"ping":true,"id":1}', "$.ping"),
    ('{"id":1,"ping":{},"subscribe":{"channel":"c"}}', "one method"),
    ('{"id":1,"ping":{},"rpc":{}}', "one method"),
]


@pytest.mark.parametrize(("text", "detail"), ANSWERABLE)
def test_wrong_content_with_an_id_gets_an_answer_that_names_the_field(text: str, detail: str) -> None:
    (command,) = decode(text)
    assert command.id == 1
    assert isinstance(command.request, MalformedRequest)
    assert detail in command.request.detail


# What ends the connection.

FATAL: list[tuple[str, str, str]] = [
    ("not JSON", "hello", "not JSON"),
    ("half an object", '{"id":1', "not JSON"),
    ("two objects in a line", '{"id":1,"ping":{}}{"id":2,"ping":{}}', "not JSON"),
    ("a byte order mark", '\ufeff{"id":1,"ping":{}}', "not JSON"),
    ("single quotes", "{'id':1}", "not JSON"),
    ("a trailing comma", '{"id":1,"ping":{},}', "not JSON"),
    ("a comment", '{"id":1,"ping":{}} // x', "not JSON"),
    ("white space only", "  ", "not JSON"),
    ("a carriage return only", "\r", "not JSON"),
    ("an object over two lines", '{"id":1,\n"ping":{}}', "not JSON"),
    ("an array", "[]", "object"),
    ("an array of commands", '[{"id":1,"ping":{}}]', "object"),
    ("a string", '"ping"', "object"),
    ("a number", "5", "object"),
    ("null", "null", "object"),
    ("no id", '{"ping":{}}', "id must be above 0"),
    ("no id and no method", '{"dance":{}}', "id must be above 0"),
    ("id 0", '{"id":0,"ping":{}}', "id must be above 0"),
    ("id 0 and nothing else", '{"id":0}', "id must be above 0"),
    ("no id, method of later", '{"rpc":{}}', "id must be above 0"),
    ("no id, two methods", '{"ping":{},"publish":{"channel":"c"}}', "id must be above 0"),
    ("no id, wrong content", '{"subscribe":{"channel":5}}', "$.subscribe.channel"),
    ("negative id", '{"id":-1,"ping":{}}', "id must be from 0 to 4294967295"),
    ("id past 32 bits", '{"id":4294967296,"ping":{}}', "id must be from 0 to 4294967295"),
    ("id past 64 bits", '{"id":99999999999999999999,"ping":{}}', "id must be from 0 to 4294967295"),
    ("id that is text", '{"id":"1","ping":{}}', "$.id"),
    ("id with a fraction", '{"id":1.5,"ping":{}}', "$.id"),
    ("id that is true", '{"id":true,"ping":{}}', "$.id"),
    ("id that is null", '{"id":null,"ping":{}}', "$.id"),
    ("wrong content, id past 32 bits", '{"id":4294967296,"ping":5}', "$.ping"),
    ("nested too deep in data", '{"id":1,"publish":{"channel":"c","data":' + DEEP + "}}", "nested too deep"),
    ("nested too deep in a method of later", '{"id":1,"rpc":' + DEEP + "}", "nested too deep"),
    ("nested too deep in an unknown method", '{"id":1,"dance":' + DEEP + "}", "nested too deep"),
    ("nested too deep at the top", DEEP, "object"),
]


@pytest.mark.parametrize(
    ("text", "detail"), [(text, detail) for _, text, detail in FATAL], ids=[name for name, *_ in FATAL]
)
def test_what_cannot_be_answered_ends_the_connection(text: str, detail: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(text)
    assert caught.value.disconnect.code == MALFORMED.code == 3501
    assert detail in caught.value.disconnect.reason


LEAKS = [
    ("garbage after wrong content", '{"connect":5, nonsense'),
    ("garbage after the object with wrong content", '{"connect":5,"id":1} nonsense'),
    ("an invalid escape after wrong content", '{"id":1,"connect":5,"x":"\\q"}'),
    ("nested too deep after wrong content", '{"id":1,"connect":5,"x":' + DEEP + "}"),
]


def test_half_a_surrogate_pair_is_answered_and_the_client_stays() -> None:
    # Grammatical, but no Unicode (RFC 8259 section 8.2): what JSON.stringify makes of a string cut within an emoji.
    for method in ('"publish":{"channel":"c","data":"\\ud83d"}', '"subscribe":{"channel":"\\ud800"}'):
        (command,) = decode('{"id":1,' + method + "}")
        assert command.id == 1
        assert isinstance(command.request, MalformedRequest)
    with pytest.raises(ProtocolError):
        decode('{"publish":{"channel":"c","data":"\\ud83d"}}')


@pytest.mark.parametrize("text", [text for _, text in LEAKS], ids=[name for name, _ in LEAKS])
def test_wrong_content_in_what_is_not_json_ends_the_connection(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(text)
    assert caught.value.disconnect.code == 3501


NOT_JSON_VALUES = [
    '"\\q"', '"\\u12G4"', '"a\tb"', '"open', "01", "1.", "-", "+1", ".5", "1e", "NaN", "Infinity", "nul", "True",
    "'a'", "[1 2]", "[1,]", '{"a":1,}', "{1:2}", "{a:1}", '{"a"}', '{"\\z":1}', "[", "}", "", "1 2", "\x00", "\x0b",
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_JSON_VALUES)
def test_data_that_is_not_json_never_gets_through(value: str) -> None:
    # It would be copied into frames of all subscribers, whose parsers would end their connections.
    with pytest.raises(ProtocolError):
        decode(f'{{"id":1,"publish":{{"channel":"c","data":{value}}}}}')


# Data passes through.

json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
).flatmap(
    lambda value: st.builds(
        lambda indented, ascii_only: json.dumps(
            value,
            ensure_ascii=ascii_only,
            separators=(", ", " : ") if indented else (",", ":"),
        ),
        st.booleans(),
        st.booleans(),
    )
)


@given(json_texts)
@example("1.0")
@example("1E+2")
@example("-0")
@example('"\\u0041\\/\\ud83d\\ude00"')
@example('{"a":1,"a":2}')
@example("123456789012345678901234567890.12345678901234567890")
def test_data_passes_through_byte_for_byte(text: str) -> None:
    (command,) = decode(f'{{"id":1,"publish":{{"channel":"c","data":{text}}}}}')
    assert isinstance(command.request, PublishRequest)
    data = bytes(command.request.data)
    assert data == text.encode()

    pushed = encode_publications("c", [Publication(data)], with_offsets=False)
    assert pushed == b'{"push":{"channel":"c","pub":{"data":' + text.encode() + b"}}}"


# Fuzz: nothing else than Commands and ProtocolErrors comes out.

fragments = st.sampled_from([
    "{", "}", "[", "]", ",", ":", '"', "\\", "\n", " ", "\t", "0", "1", "-", "1e5", "true", "null", '"id"', '"connect"',
    '"subscribe"', '"publish"', '"history"', '"send"', '"ping"', '"rpc"', '"channel"', '"data"', '"id":1', '{"id":1,',
    '"publish":{"channel":"c","data":', '"\\ud800"', "\x00", "é", "😀",
])  # fmt: skip
broken_texts = st.text(max_size=60) | st.lists(fragments, max_size=25).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["id", "connect", "subscribe", "unsubscribe", "publish", "history", "send", "ping", "rpc", "x"])
fields = st.sampled_from(["channel", "data", "token", "offset", "epoch", "recover", "limit", "since", "reverse", "y"])
shapes = st.dictionaries(names, st.dictionaries(fields, values, max_size=4) | values, max_size=4).map(json.dumps)


def attempt(text: str) -> list[Command] | ProtocolError:
    """Decode; a ProtocolError is the one thing that may come instead of commands."""
    try:
        return decode(text)
    except ProtocolError as error:
        return error


@given(broken_texts | shapes | st.tuples(shapes, broken_texts).map("".join))
@example('{"ping":5,"')
@example('{"\\q":1}')
@example('{"id":1,"\\q":1}')
def test_any_text_is_commands_or_a_protocol_error(text: str) -> None:
    result = attempt(text)
    if isinstance(result, ProtocolError):
        assert result.disconnect.code == 3501
        assert len(result.disconnect.reason.encode()) <= 123
    else:
        assert all(0 <= command.id <= 4_294_967_295 for command in result)
        no_reply_wanted = [command.request for command in result if command.id == 0]
        assert all(isinstance(request, Pong | SendRequest) for request in no_reply_wanted)


@given(st.binary(max_size=100))
def test_any_bytes_that_are_text_are_commands_or_a_protocol_error(data: bytes) -> None:
    result = attempt(data.decode(errors="replace"))
    assert isinstance(result, list) or result.disconnect.code == 3501


# What the server says.


def test_ping_is_the_empty_object() -> None:
    assert PING == b"{}"


def test_reply_leaves_out_everything_but_its_result() -> None:
    result = ConnectResult(client="c", version="v", ping=25, pong=True, node="n")
    assert json.loads(encode(Reply(1, connect=result))) == {
        "id": 1,
        "connect": {"client": "c", "version": "v", "ping": 25, "pong": True, "node": "n"},
    }
    assert encode(Reply(2, subscribe=SubscribeResult())) == b'{"id":2,"subscribe":{}}'


def test_error_says_whether_it_is_temporary_only_when_it_is() -> None:
    assert json.loads(encode_error(3, UNAUTHORIZED)) == {"id": 3, "error": {"code": 101, "message": "unauthorized"}}
    assert json.loads(encode_error(4, TOO_MANY_REQUESTS)) == {
        "id": 4,
        "error": {"code": 111, "message": "too many requests", "temporary": True},
    }


def test_unsubscribe_push_names_channel_code_and_reason() -> None:
    assert json.loads(encode_unsubscribe("c", INSUFFICIENT_STATE)) == {
        "push": {"channel": "c", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
    }


WHOLE = Publication(b'{"a": 1}', ClientInfo("user", "client", b'{"n":1}'), {"k": "v"}, 1_763_800_000_123, 42)
PUBLICATIONS: list[tuple[Publication, bool, dict[str, Any]]] = [
    (Publication(b"1"), True, {"data": 1}),
    (Publication(b"1", offset=5), True, {"data": 1, "offset": 5}),
    (Publication(b"1", offset=5), False, {"data": 1}),
    (Publication(b"1", ClientInfo("u", "c")), True, {"data": 1, "info": {"user": "u", "client": "c"}}),
    (Publication(b"1", ClientInfo("", "c")), True, {"data": 1, "info": {"client": "c"}}),
    (
        WHOLE,
        True,
        {
            "data": {"a": 1},
            "info": {"user": "user", "client": "client", "conn_info": {"n": 1}},
            "tags": {"k": "v"},
            "time": 1_763_800_000_123,
            "offset": 42,
        },
    ),
]


@pytest.mark.parametrize(("publication", "with_offset", "expected"), PUBLICATIONS)
def test_publication_shows_what_it_has(publication: Publication, with_offset: bool, expected: dict[str, Any]) -> None:
    push = encode_publications("c", [publication], with_offsets=with_offset)
    assert json.loads(push) == {"push": {"channel": "c", "pub": expected}}
    assert json.loads(encode(publication_message(publication, with_offset=with_offset))) == expected


def test_publications_of_a_group_share_a_frame_one_push_a_line() -> None:
    frame = encode_publications("c", [Publication(b"1", offset=1), Publication(b"2", offset=2)], with_offsets=True)
    assert [json.loads(line)["push"]["pub"] for line in frame.split(b"\n")] == [
        {"data": 1, "offset": 1},
        {"data": 2, "offset": 2},
    ]
