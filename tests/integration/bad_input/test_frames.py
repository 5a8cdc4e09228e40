"""Frames that are too large, or not text, or no frames."""

import asyncio
import json
import random
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from gateway.protocol import codes

from ..clients import RawClient
from .guarded import FRAME_MAX_BYTES, Guarded, still_works, token
from .test_commands import BAD_COMMANDS

pytestmark = pytest.mark.servers


HUGE = {"id": 99, "publish": {"channel": "c", "data": "x" * FRAME_MAX_BYTES}}


async def test_huge_frame(client: RawClient) -> None:
    await client.say(HUGE)
    assert (await client.closed()).code == 1009


async def test_huge_first_frame(stranger: RawClient) -> None:
    await stranger.say(HUGE)
    assert (await stranger.closed()).code == 1009


@pytest.mark.parametrize("frames", [1, 8])
async def test_huge_message_that_is_still_being_sent(guarded: Guarded, frames: int) -> None:
    """The code reaches the client although the node closes with input unread: no reset may overtake it."""

    async def close_code() -> int:
        async with RawClient.connected(guarded.url, token()) as client:
            with suppress(ConnectionClosed):
                await client.socket.send(["x" * (2 * FRAME_MAX_BYTES // frames)] * frames)
            return (await client.closed()).code

    for _ in range(4):
        assert await asyncio.gather(*(close_code() for _ in range(10))) == [1009] * 10


async def test_frame_that_claims_to_be_enormous(client: RawClient) -> None:
    # Text, final, masked, 64 bits of length: a terabyte, of which nothing follows (RFC 6455, section 5.2).
    client.socket.transport.write(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"mask")
    assert (await client.closed()).code == 1009


async def test_largest_frame(client: RawClient) -> None:
    command = json.dumps({"id": 7, "publish": {"channel": "c", "data": ""}})
    await client.say(command.replace('""', '"' + "x" * (FRAME_MAX_BYTES - len(command)) + '"'))
    assert await client.reply(7) == {"id": 7, "publish": {}}


@pytest.mark.parametrize("text", [b"\xff", b'{"id": 1, "ping": {"x": "\xc3("}}', b"\xed\xa0\x80", b'"\xf0\x9f'])
async def test_invalid_utf8(client: RawClient, text: bytes) -> None:
    await client.socket.send(text, text=True)
    assert (await client.closed()).code == 1007


@pytest.mark.parametrize("data", [b"", b'{"id": 1, "ping": {}}', bytes(range(256))])
async def test_binary_frame(client: RawClient, data: bytes) -> None:
    await client.socket.send(data)
    assert (await client.closed()).code == codes.INAPPROPRIATE_PROTOCOL.code


async def test_unmasked_frame(client: RawClient) -> None:
    client.socket.transport.write(Frame(Opcode.TEXT, b"{}").serialize(mask=False))
    assert (await client.closed()).code == 1002


async def test_empty_frame(client: RawClient) -> None:
    await client.say("")
    await still_works(client)


async def test_random_frames(guarded: Guarded) -> None:
    chance = random.Random(20)
    commands = [{"id": 5, **command} for command, _ in BAD_COMMANDS.values()] + [{"id": 5, "connect": {}}]
    allowed = {codes.MALFORMED.code, codes.INAPPROPRIATE_PROTOCOL.code, codes.INVALID_TOKEN.code, 1007, 1009}
    for _ in range(150):
        async with RawClient.connected(guarded.url, token()) as client:
            frame = bytearray(json.dumps(chance.choice(commands))[:2000].encode())
            for _ in range(chance.randrange(1, 6)):
                frame[chance.randrange(len(frame))] = chance.randrange(256)
            await client.socket.send(bytes(frame), text=chance.random() < 0.9)
            await client.say({"id": 1, "ping": {}}, "the end")
            assert (await client.closed()).code in allowed
