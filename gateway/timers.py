"""One wheel for the timers of all connections: pings, deadlines, expiry. Pure but for `run`; the clock is injected."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.25


class Timer:
    """A callback that will be called once, unless cancelled."""

    __slots__ = ("_slot", "callback")

    def __init__(self, callback: Callable[[], None], slot: "dict[Timer, None]") -> None:
        self.callback: Callable[[], None] | None = callback
        self._slot = slot
        slot[self] = None

    def cancel(self) -> None:
        """Never call back, and leave nothing behind: the slot may be a month away."""
        self.callback = None
        self._slot.pop(self, None)


class TimerWheel:
    """Timers that may be late by a tick. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: defaultdict[int, dict[Timer, None]] = defaultdict(dict)
        self._next = self._slot(clock())

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, `seconds` from now or up to a tick later."""
        return Timer(callback, self._slots[max(self._slot(self._clock() + seconds) + 1, self._next)])

    def turn(self) -> None:
        """Call what is due."""
        now = self._slot(self._clock())
        while self._next <= now:
            due = tuple(self._slots.pop(self._next, ()))
            self._next += 1  # before the calls: what they set goes into a slot still to come
            for timer in due:
                if timer.callback is not None:
                    self._call(timer.callback)

    async def run(self) -> None:
        """Turn for ever."""
        while True:
            self.turn()
            await asyncio.sleep(TICK_SECONDS)

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # one connection's fault must not stop the timers of all others
            log.exception("timer failed")

    @staticmethod
    def _slot(seconds: float) -> int:
        return int(seconds / TICK_SECONDS)
