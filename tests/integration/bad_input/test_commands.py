"""Frames that hold no commands, and commands that cannot be carried out."""

import pytest

from gateway.protocol import codes

from ..clients import Message, RawClient
from .guarded import error, failed, still_works, token

pytestmark = pytest.mark.servers

NOT_COMMANDS = {
    "not JSON": "hello",
    "half a command": '{"id": 1, "connect": {',
    "two commands without a line break": '{"id": 1, "ping": {}}{"id": 2, "ping": {}}',
    "a number": "42",
    "null": "null",
    "a string": '"connect"',
    "an array": '[{"id": 1, "ping": {}}]',
    "nested too deep": "[" * 30_000,
    "nested too deep in a field": '{"id": 1, "publish": {"channel": "c", "data": ' + "[" * 30_000,
    "lone surrogate": '{"id": 1, "subscribe": {"channel": "\\ud800"',
    "no id": '{"publish": {"channel": "c", "data": {}}}',
    "id 0": '{"id": 0, "ping": {}}',
    "id below 0": '{"id": -1, "ping": {}}',
    "id above uint32": '{"id": 4294967296, "ping": {}}',
    "id far above": '{"id": ' + "9" * 400 + ', "ping": {}}',
    "id a string": '{"id": "1", "ping": {}}',
    "id a fraction": '{"id": 1.5, "ping": {}}',
    "id null": '{"id": null, "ping": {}}',
    "wrong type, no id": '{"publish": 5}',
    "unknown method, no id": '{"juggle": {}}',
}


@pytest.mark.parametrize("line", NOT_COMMANDS.values(), ids=NOT_COMMANDS)
async def test_no_command(client: RawClient, line: str) -> None:
    await client.say(line)
    assert (await client.closed()).code == codes.MALFORMED.code


@pytest.mark.parametrize("line", NOT_COMMANDS.values(), ids=NOT_COMMANDS)
async def test_no_command_in_the_first_frame(stranger: RawClient, line: str) -> None:
    await stranger.say(line)
    assert (await stranger.closed()).code == codes.MALFORMED.code


async def test_no_command_after_good_ones_in_one_frame(stranger: RawClient) -> None:
    await stranger.say({"id": 1, "connect": {"token": token()}}, {"id": 2, "ping": {}}, "hello", {"id": 3, "ping": {}})
    assert "connect" in await stranger.hear()
    assert await stranger.hear() == {"id": 2, "ping": {}}
    assert (await stranger.closed()).code == codes.MALFORMED.code


BAD_COMMANDS: dict[str, tuple[Message, codes.ReplyError]] = {
    "method not an object": ({"subscribe": "channel"}, codes.BAD_REQUEST),
    "method an array": ({"publish": ["c", {}]}, codes.BAD_REQUEST),
    "channel a number": ({"subscribe": {"channel": 5}}, codes.BAD_REQUEST),
    "channel null": ({"publish": {"channel": None, "data": {}}}, codes.BAD_REQUEST),
    "no channel": ({"subscribe": {}}, codes.BAD_REQUEST),
    "empty channel": ({"subscribe": {"channel": ""}}, codes.BAD_REQUEST),
    "control characters": ({"publish": {"channel": "a\nb", "data": {}}}, codes.BAD_REQUEST),
    "no data": ({"publish": {"channel": "c"}}, codes.BAD_REQUEST),
    "recover a string": ({"subscribe": {"channel": "c", "recover": "yes"}}, codes.BAD_REQUEST),
    "offset a string": ({"subscribe": {"channel": "c", "recover": True, "offset": "1"}}, codes.BAD_REQUEST),
    "limit a fraction": ({"history": {"channel": "c", "limit": 1.5}}, codes.BAD_REQUEST),
    "since an array": ({"history": {"channel": "c", "since": [1, "e"]}}, codes.BAD_REQUEST),
    "two methods": ({"ping": {}, "publish": {"channel": "c", "data": {}}}, codes.BAD_REQUEST),
    "no method": ({}, codes.METHOD_NOT_FOUND),
    "unknown method": ({"juggle": {}}, codes.METHOD_NOT_FOUND),
    "method of a later version": ({"rpc": {"method": "x"}}, codes.NOT_AVAILABLE),
    "unknown namespace": ({"subscribe": {"channel": "nowhere:c"}}, codes.UNKNOWN_CHANNEL),
    "publish in an unknown namespace": ({"publish": {"channel": "nowhere:c", "data": {}}}, codes.UNKNOWN_CHANNEL),
    "history of an unknown namespace": ({"history": {"channel": "nowhere:c"}}, codes.UNKNOWN_CHANNEL),
    "namespace without a name": ({"subscribe": {"channel": ":c"}}, codes.UNKNOWN_CHANNEL),
    "huge channel name": ({"subscribe": {"channel": "c" * 60_000}}, codes.BAD_REQUEST),
    "channel name one byte too long": ({"subscribe": {"channel": "é" * 128}}, codes.BAD_REQUEST),
    "publish in a huge channel name": ({"publish": {"channel": "c" * 256, "data": {}}}, codes.BAD_REQUEST),
    "no permission to subscribe": ({"subscribe": {"channel": "closed:c"}}, codes.PERMISSION_DENIED),
    "no permission to publish": ({"publish": {"channel": "readonly:c", "data": {}}}, codes.PERMISSION_DENIED),
    "not subscribed, so no publishing": ({"publish": {"channel": "members:c", "data": {}}}, codes.PERMISSION_DENIED),
    "no permission to read history": ({"history": {"channel": "readonly:c"}}, codes.PERMISSION_DENIED),
    "not subscribed, so no history": ({"history": {"channel": "c"}}, codes.PERMISSION_DENIED),
}


@pytest.mark.parametrize(("command", "code"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
async def test_bad_command(client: RawClient, command: Message, code: codes.ReplyError) -> None:
    await client.say({"id": 77, **command})
    assert failed(await client.reply(77)) == error(code)
    await still_works(client)


async def test_nothing_arrives_of_what_was_not_permitted(client: RawClient) -> None:
    assert "subscribe" in await client.ask("subscribe", channel="readonly:c")
    assert failed(await client.ask("publish", channel="readonly:c", data={})) == error(codes.PERMISSION_DENIED)
    assert "subscribe" in await client.ask("subscribe", channel="members:c")
    assert "publish" in await client.ask("publish", channel="members:c", data={})
    await until_pushed(client, 1)
    assert [push["channel"] for push in client.pushes] == ["members:c"]


async def until_pushed(client: RawClient, number: int) -> None:
    """Listen until so many pushes have come."""
    while len(client.pushes) < number:
        client.pushes.append((await client.hear())["push"])


async def test_longest_channel_name(client: RawClient) -> None:
    channel = "é" * 127 + "c"  # 255 bytes
    assert "subscribe" in await client.ask("subscribe", channel=channel)
    assert "publish" in await client.ask("publish", channel=channel, data=1)
    await until_pushed(client, 1)
    assert client.pushes[0]["channel"] == channel


async def test_subscribed_already(client: RawClient) -> None:
    assert "subscribe" in await client.ask("subscribe", channel="c")
    assert failed(await client.ask("subscribe", channel="c")) == error(codes.ALREADY_SUBSCRIBED)
    await still_works(client)


async def test_too_many_channels(client: RawClient) -> None:
    for number in range(5):
        assert "subscribe" in await client.ask("subscribe", channel=f"c{number}")
    assert failed(await client.ask("subscribe", channel="c5")) == error(codes.LIMIT_EXCEEDED)
    assert "unsubscribe" in await client.ask("unsubscribe", channel="c0")
    assert "subscribe" in await client.ask("subscribe", channel="c5")


async def test_too_many_publications(client: RawClient) -> None:
    number = 3000  # client.publish_burst is 1000, and 500 a second
    for first in range(1, number, 100):
        await client.say(
            *({"id": id_, "publish": {"channel": "flood", "data": 1}} for id_ in range(first, first + 100))
        )
    replies = [await client.hear() for _ in range(number)]
    refused = [failed(reply) for reply in replies if "error" in reply]
    assert set(refused) == {error(codes.TOO_MANY_REQUESTS)}
    assert 0 < len(refused) < number
