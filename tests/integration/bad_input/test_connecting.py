"""Who may not connect, who does not, and who connects twice."""

import time

import jwt
import pytest
from websockets.exceptions import InvalidStatus

from gateway.protocol import codes

from ..clients import Closed, RawClient
from ..http import status_of
from ..sdks import SDKS, Ended, SdkName, Sdks
from ..waiting import until
from .guarded import CONNECT_SECONDS, ORIGIN, SECRET, Guarded, error, failed, still_works, token

pytestmark = pytest.mark.servers


async def test_command_before_connect(stranger: RawClient) -> None:
    await stranger.say({"id": 1, "publish": {"channel": "c", "data": {}}}, {"id": 2, "connect": {"token": token()}})
    assert (await stranger.closed()).code == codes.MALFORMED.code


async def test_connect_twice(client: RawClient) -> None:
    await client.say({"id": 9, "connect": {"token": token()}})
    assert (await client.closed()).code == codes.MALFORMED.code


def tampered() -> str:
    """A token whose claims were exchanged under its signature."""
    head, _, signature = token().split(".")
    return ".".join((head, token(sub="root").split(".")[1], signature))


BAD_TOKENS = {
    "missing": "",
    "not a token": "secret",
    "not a token either": "a.b.c",
    "not ASCII": "é.é.é",
    "of another secret": token("another secret, which is long enough too"),
    "tampered with": tampered(),
    "without signature": token("", algorithm="none"),
    "of another algorithm": token(SECRET * 2, algorithm="HS512"),
    "not yet valid": token(nbf=int(time.time()) + 3600),
    "exp a string": token(exp=0)[:-3] + "abc",
    "user a number": jwt.api_jws.encode(b'{"sub": 42}', SECRET),
    "claims an array": jwt.api_jws.encode(b"[]", SECRET),
    "huge": token(info="x" * 10_000),
}


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_bad_token(stranger: RawClient, bad: str) -> None:
    await stranger.say({"id": 1, "connect": {"token": bad}})
    assert await stranger.closed() == Closed(codes.INVALID_TOKEN.code, codes.INVALID_TOKEN.reason)


@pytest.mark.parametrize("sdk", SDKS)
async def test_tokens_of_the_sdks(guarded: Guarded, javascript: None, sdk: SdkName) -> None:
    async with Sdks() as sdks:
        admitted = await sdks.client(sdk, guarded.url, token=token())
        await admitted.publish("c", {})
        refused = await sdks.opened(sdk, guarded.url, token=token("another secret, which is long enough too"))
        await until(lambda: refused.disconnected, "the SDK gives up")
        assert refused.disconnected == [Ended(codes.INVALID_TOKEN.code, codes.INVALID_TOKEN.reason)]
        assert refused.connections == []


async def test_token_a_number(stranger: RawClient) -> None:
    await stranger.say({"id": 1, "connect": {"token": 42}})
    assert (await stranger.closed()).code == codes.MALFORMED.code


async def test_expired_token(stranger: RawClient) -> None:
    reply = await stranger.ask("connect", token=token(exp=int(time.time()) - 1))
    assert failed(reply) == error(codes.TOKEN_EXPIRED)
    assert "connect" in await stranger.ask("connect", token=token())  # with a fresh one it may stay


async def test_expired_token_and_no_other(stranger: RawClient) -> None:
    assert "error" in await stranger.ask("connect", token=token(exp=1))
    assert (await stranger.closed()).code == codes.STALE.code


async def test_token_that_expires(stranger: RawClient) -> None:
    assert "connect" in await stranger.ask("connect", token=token(exp=time.time() + 1))
    assert (await stranger.closed()).code == codes.CONNECTION_EXPIRED.code


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", f"{ORIGIN}.evil.example", "null"])
async def test_foreign_origin(guarded: Guarded, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with RawClient.open(guarded.url, origin=origin):
            pass
    assert refused.value.response.status_code == 403


async def test_own_origin(guarded: Guarded) -> None:
    async with RawClient.connected(guarded.url, token(), origin=ORIGIN) as client:
        await still_works(client)


@pytest.mark.parametrize("says", [[], ["{}"], ["{}", "{}"]])
async def test_never_connects(stranger: RawClient, says: list[str]) -> None:
    for line in says:
        await stranger.say(line)
    start = time.monotonic()
    assert await stranger.closed() == Closed(codes.STALE.code, codes.STALE.reason)
    assert time.monotonic() - start > CONNECT_SECONDS / 2


async def test_no_websocket(guarded: Guarded) -> None:
    status = await status_of(f"{guarded.nginx.url}/connection/websocket")
    assert status
    assert 400 <= status < 500
