"""Ctrl-C and SIGTERM: what has begun is finished first, a second Ctrl-C leaves at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; `status` is the exit status that shells expect, 128 + its number."""

    def __init__(self, signum: int, advice: str = ""):
        super().__init__("; ".join(filter(None, [f"stopped by {signal.Signals(signum).name}", advice])))
        self.status = 128 + signum


class Interrupts:
    """Within its context SIGINT (Ctrl-C) and SIGTERM raise Interrupted: at once, or where `deferred` ends.

    After the first signal Ctrl-C has the system's own effect: the program ends at once. Outside of its context, and
    in any but the main thread, it changes nothing, and `deferred` has nothing to defer. Windows sends no SIGTERM.
    `advice` tells the user how to go on.
    """

    def __init__(self, advice: str = ""):
        self.advice = advice
        self.signal = 0  # the one that came
        self._depth = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self._depth:
            raise Interrupted(number, self.advice)
        log.info("%s: finishing this step and saving; Ctrl-C leaves at once", signal.Signals(number).name)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal that comes within is acted on at the end, or where `act` is called."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth:
            self.act(self.signal)

    def act(self, number: int) -> None:
        """Raise Interrupted for the signal `number`; 0 stands for none."""
        if number:
            raise Interrupted(number, self.advice)
