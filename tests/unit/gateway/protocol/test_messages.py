"""Messages leave defaults out, and every request says its method."""

import typing

import msgspec
import pytest

from gateway.metrics import COMMAND_METHODS
from gateway.protocol import messages
from gateway.protocol.messages import (
    ConnectResult,
    HistoryResult,
    PingResult,
    PublishResult,
    Reply,
    SubscribeResult,
    UnsubscribeResult,
)

REQUESTS: tuple[type[msgspec.Struct], ...] = typing.get_args(messages.Request)
RESULTS = [
    (SubscribeResult(), b"{}"),
    (UnsubscribeResult(), b"{}"),
    (PublishResult(), b"{}"),
    (HistoryResult(), b"{}"),
    (PingResult(), b"{}"),
    (ConnectResult(client="c", version="v"), b'{"client":"c","version":"v"}'),
    (SubscribeResult(recoverable=True, epoch="e", offset=3), b'{"recoverable":true,"epoch":"e","offset":3}'),
    (Reply(7, ping=PingResult()), b'{"id":7,"ping":{}}'),
]


@pytest.mark.parametrize(("message", "encoded"), RESULTS)
def test_defaults_are_left_out(message: msgspec.Struct, encoded: bytes) -> None:
    assert msgspec.json.encode(message) == encoded


def test_every_request_has_a_method_that_metrics_know() -> None:
    methods = [request.method for request in REQUESTS]  # type: ignore[attr-defined]
    assert sorted(methods) == sorted(COMMAND_METHODS)


def test_lists_of_one_result_are_not_shared_with_another() -> None:
    SubscribeResult().publications.append(messages.PublicationMessage(data=msgspec.Raw(b"1")))
    assert SubscribeResult().publications == []
