"""The token bucket lets a rate pass on average, and a burst at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import TokenBucket
from tests.unit.doubles import SettableClock


def test_burst_passes_at_once_and_no_more() -> None:
    bucket = TokenBucket(10.0, 3, SettableClock())
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]


def test_tokens_come_back_with_the_rate() -> None:
    clock = SettableClock()
    bucket = TokenBucket(10.0, 1, clock)
    assert bucket.take()
    clock.advance(0.09)
    assert not bucket.take()
    clock.advance(0.02)
    assert bucket.take()
    assert not bucket.take()


def test_refused_attempts_cost_nothing() -> None:
    clock = SettableClock()
    bucket = TokenBucket(1.0, 1, clock)
    assert bucket.take()
    for _ in range(9):
        clock.advance(0.1)
        bucket.take()
    clock.advance(0.11)
    assert bucket.take()


@pytest.mark.parametrize("idle_seconds", [10.0, 1e9])
def test_idleness_saves_up_no_more_than_a_burst(idle_seconds: float) -> None:
    clock = SettableClock()
    bucket = TokenBucket(100.0, 5, clock)
    clock.advance(idle_seconds)
    assert sum(bucket.take() for _ in range(20)) == 5


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 100),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=50),
)
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, pauses: list[float]) -> None:
    clock = SettableClock(0.0)
    bucket = TokenBucket(rate, burst, clock)
    taken = 0
    for pause in pauses:
        clock.advance(pause)
        taken += bucket.take()
        assert taken <= burst + rate * clock.now + 1e-6
