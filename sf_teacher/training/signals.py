"""Ctrl-C and SIGTERM: how a command or a run is stopped within seconds, with nothing half done. Needs no torch."""
from __future__ import annotations

import _thread
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CLEANING = 4.       # seconds after `Interrupted` was raised in which further signals change nothing: time to tidy up
PATIENCE = 2.       # seconds that a step may take to end by itself


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run; what it needs to continue has been saved."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(f'stopped by {signal.Signals(signum).name} {where}')
        self.signum = signum


class Stop:
    """The signal that asked for an end, and when it takes effect.

    Outside the loop at once, by raising `Interrupted` from whatever is going on; in the loop between two steps, or in
    the middle of a step that takes longer than `patience`.
    """

    def __init__(self) -> None:
        self.signum = 0             # 0 for none
        self.where = 'before the first step'
        self.patience = 0.          # infinite where processes can only stop together
        self._process, self._first, self._raised = os.getpid(), -math.inf, -math.inf
        self._timer: threading.Timer | None = None
        self._ignored = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self._process:
            return      # a loading process, which its parent ends
        now = time.monotonic()
        if not self.signum:
            self.signum, self._first = signum, now
            if hasattr(signal, 'SIGCHLD'):      # loading processes may have got the signal too, which is no error now
                signal.signal(signal.SIGCHLD, lambda *_: None)
            self._later(self.patience)
        if now - self._first >= self.patience and now - self._raised >= CLEANING:
            self.check()

    def check(self) -> None:
        """Raise `Interrupted` if there was a signal; again after a while if somebody swallows it."""
        if self.signum:
            self._raised = time.monotonic()
            self._later(CLEANING)
            raise Interrupted(self.signum, self.where)

    def _later(self, seconds: float) -> None:
        """Send the signal to this process once more, unless the block has ended by then."""
        self.cancel()
        if 0 < seconds < math.inf:
            self._timer = threading.Timer(seconds, _thread.interrupt_main, (self.signum,))
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        """The block has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def ignore(self) -> None:
        """Let further signals change nothing, also after the block: the process ends anyway."""
        self._ignored = True
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)


@contextmanager
def signals() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM stop what is done in the block; who is in such a block already shares it."""
    current = signal.getsignal(signal.SIGINT)
    if isinstance(current, Stop):
        yield current
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():      # only the main thread may handle signals
        yield stop
        return
    children = {signal.SIGCHLD} if hasattr(signal, 'SIGCHLD') else set()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, *children)}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, stop)
        yield stop
    finally:
        stop.cancel()
        for signum, handler in before.items() if not stop._ignored else ():
            if handler is not None and (signum not in children or stop.signum):
                signal.signal(signum, handler)
