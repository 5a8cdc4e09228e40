"""A small client that finds out whether one can publish and receive through a gateway."""

import json
import time
from typing import Any
from uuid import uuid4

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from deploy.cluster.processes import ProcessError

_PAUSE_SECONDS = 0.1
_ATTEMPT_SECONDS = 5.0


class NotPermittedError(Exception):
    """The gateway works but does not let an anonymous client publish and subscribe."""


def publish_and_receive(ws_url: str, timeout: float) -> None:
    """Publish in a channel of its own and wait for the publication, again until it works.

    Raises NotPermittedError when the settings of the gateway forbid it, ProcessError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _attempt(ws_url)
        except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
            if time.monotonic() > deadline:
                what = f"{type(error).__name__}: {error}".rstrip(": ")
                raise ProcessError(f"cannot publish and receive through {ws_url} ({what})") from error
        time.sleep(_PAUSE_SECONDS)


def _attempt(ws_url: str) -> None:
    channel = f"probe-{uuid4().hex}"
    commands: list[dict[str, Any]] = [
        {"id": 1, "connect": {}},
        {"id": 2, "subscribe": {"channel": channel}},
        {"id": 3, "publish": {"channel": channel, "data": {}}},
    ]
    try:
        with connect(ws_url, open_timeout=_ATTEMPT_SECONDS, close_timeout=1, proxy=None, compression=None) as client:
            for command in commands:
                client.send(json.dumps(command))
            _wait_for_publication(client, channel)
    except InvalidStatus as error:
        if error.response.status_code == 403:
            raise NotPermittedError("the handshake was refused") from None
        raise
    except ConnectionClosed as error:
        if error.rcvd and 3500 <= error.rcvd.code < 4000:  # closes after which a client must not come back
            raise NotPermittedError(f"closed with {error.rcvd.code} {error.rcvd.reason}") from None
        raise


def _wait_for_publication(client: ClientConnection, channel: str) -> None:
    deadline = time.monotonic() + _ATTEMPT_SECONDS
    while True:
        for line in str(client.recv(timeout=max(0.0, deadline - time.monotonic()))).splitlines():
            match json.loads(line):
                case {"push": {"channel": pushed, "pub": _}} if pushed == channel:
                    return
                case {"error": {"temporary": True, **error}}:
                    raise ConnectionError(error.get("message"))
                case {"error": error}:
                    raise NotPermittedError(f"error {error.get('code')} {error.get('message')}")
