"""The two tables of codes are those of the Centrifuge client protocol."""

import pytest

from gateway.protocol import codes
from gateway.protocol.codes import CommandError, Disconnect, ProtocolError, ReplyError, Unsubscribe

ERRORS = {
    100: "internal server error",
    101: "unauthorized",
    102: "unknown channel",
    103: "permission denied",
    104: "method not found",
    105: "already subscribed",
    106: "limit exceeded",
    107: "bad request",
    108: "not available",
    109: "token expired",
    111: "too many requests",
    112: "unrecoverable position",
}
TEMPORARY = {100, 111}
DISCONNECTS = {
    3001: "shutdown",
    3004: "internal server error",
    3005: "connection expired",
    3008: "slow",
    3012: "no pong",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3506: "inappropriate protocol",
}


def test_errors_are_those_of_the_protocol() -> None:
    table = [value for value in vars(codes).values() if isinstance(value, ReplyError)]
    assert {error.code: error.message for error in table} == ERRORS
    assert {error.code for error in table if error.temporary} == TEMPORARY
    assert len(table) == len(ERRORS), "two errors of one code"


def test_disconnects_are_those_of_the_protocol() -> None:
    table = [value for value in vars(codes).values() if isinstance(value, Disconnect)]
    assert {disconnect.code: disconnect.reason for disconnect in table} == DISCONNECTS
    assert len(table) == len(DISCONNECTS), "two disconnects of one code"


def test_client_resubscribes_after_insufficient_state() -> None:
    table = [value for value in vars(codes).values() if isinstance(value, Unsubscribe)]
    assert table == [Unsubscribe(2500, "insufficient state")]


@pytest.mark.parametrize("detail", ["x" * 500, "é" * 500, "😀" * 500, "ab😀" * 100])
def test_reason_with_a_detail_fits_into_a_close_frame(detail: str) -> None:
    disconnect = codes.MALFORMED.because(detail)
    assert disconnect.code == 3501
    assert disconnect.reason.startswith("bad request: ")
    assert 119 < len(disconnect.reason.encode()) <= 123  # RFC 6455 section 5.5: 125 bytes, two of them the code


def test_error_with_a_detail_keeps_its_code_and_says_more() -> None:
    error = codes.TOO_MANY_REQUESTS.because("slow down")
    assert error == ReplyError(111, "too many requests: slow down", temporary=True)
    assert codes.TOO_MANY_REQUESTS.message == "too many requests"


def test_exceptions_carry_what_the_client_is_told() -> None:
    assert CommandError(codes.BAD_REQUEST).error is codes.BAD_REQUEST
    assert ProtocolError(codes.STALE).disconnect is codes.STALE
