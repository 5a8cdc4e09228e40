"""The timer wheel calls back once, never early, at most a tick late, and forgets what it called."""

import asyncio
import gc
import weakref
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.timers import TICK_SECONDS, Timer, TimerWheel
from tests.unit.doubles import SettableClock
from tests.unit.waiting import eventually

durations = st.floats(0, 100)


@given(start=st.floats(0, 1e7), delays=st.lists(durations, min_size=1, max_size=20))
def test_timer_is_never_early_and_at_most_a_tick_late(start: float, delays: list[float]) -> None:
    clock = SettableClock(start)
    wheel = TimerWheel(clock)
    called: dict[int, float] = {}

    def note(number: int) -> None:
        called[number] = clock.now - start

    for number, delay in enumerate(delays):
        wheel.after(delay, partial(note, number))
    while len(called) < len(delays):
        clock.advance(TICK_SECONDS / 5)
        wheel.turn()
        assert clock.now - start < 102
    for number, delay in enumerate(delays):
        assert delay - 1e-6 <= called[number] <= delay + TICK_SECONDS * 1.2 + 1e-6


def test_timer_calls_back_once() -> None:
    clock = SettableClock()
    wheel = TimerWheel(clock)
    calls: list[str] = []
    wheel.after(1.0, lambda: calls.append("called"))
    for _ in range(20):
        clock.advance(1.0)
        wheel.turn()
    assert calls == ["called"]


def test_cancelled_timer_never_calls_back_and_lets_go_of_its_callback() -> None:
    clock = SettableClock()
    wheel = TimerWheel(clock)

    class Owner:
        def called(self) -> None:
            raise AssertionError

    owner = Owner()
    timer = wheel.after(1.0, owner.called)
    timer.cancel()
    gone = weakref.ref(owner)
    del owner
    assert gone() is None
    clock.advance(5.0)
    wheel.turn()


def test_cancelled_timers_of_the_far_future_leave_nothing_behind() -> None:
    # The expiry of a token may be a month away; the connection was over after a minute.
    clock = SettableClock()
    wheel = TimerWheel(clock)
    for number in range(1000):
        wheel.after(30 * 86_400 + number, print).cancel()
    clock.advance(60.0)
    wheel.turn()
    gc.collect()
    assert sum(isinstance(one, Timer) for one in gc.get_objects()) < 100


def test_timers_missed_while_nothing_turned_are_all_called_in_order() -> None:
    clock = SettableClock()
    wheel = TimerWheel(clock)
    calls: list[int] = []
    for number in (3, 1, 2):
        wheel.after(number, partial(calls.append, number))
    clock.advance(1000.0)
    wheel.turn()
    assert calls == [1, 2, 3]


@pytest.mark.parametrize("delay", [0.0, 0.1, 5.0, -5.0])
def test_callback_may_set_the_next_timer(delay: float) -> None:
    clock = SettableClock()
    wheel = TimerWheel(clock)
    calls: list[float] = []

    def again() -> None:
        calls.append(clock.now)
        if len(calls) < 3:
            wheel.after(delay, again)

    wheel.after(1.0, again)
    for _ in range(100):
        clock.advance(0.25)
        wheel.turn()
    assert len(calls) == 3


def test_timer_of_the_past_is_called_at_the_next_turn() -> None:
    clock = SettableClock()
    wheel = TimerWheel(clock)
    calls: list[str] = []
    wheel.after(-1000.0, lambda: calls.append("called"))
    clock.advance(TICK_SECONDS)
    wheel.turn()
    assert calls == ["called"]


def test_callback_that_fails_does_not_stop_the_others() -> None:
    clock = SettableClock()
    wheel = TimerWheel(clock)
    calls: list[str] = []

    def fail() -> None:
        raise ValueError

    wheel.after(1.0, fail)
    wheel.after(1.0, lambda: calls.append("called"))
    clock.advance(2.0)
    wheel.turn()
    assert calls == ["called"]


async def test_running_wheel_turns_by_itself() -> None:
    loop = asyncio.get_running_loop()
    wheel = TimerWheel(loop.time)
    calls: list[float] = []
    wheel.after(0.0, lambda: calls.append(loop.time()))
    running = asyncio.create_task(wheel.run())
    await eventually(lambda: bool(calls))
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
