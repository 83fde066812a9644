"""SIGINT and SIGTERM ask a run to stop at the end of its step; a second one stops it at once, if it is
one process; of several, the launcher does."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from unmask.dist import Ranks, is_one_of_several


class Interruption:
    """Context manager; `signal_name` is set once a signal has come."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.exit_code = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def share(self, ranks: Ranks) -> None:
        """A signal to one of the ranks is one to all: they end at the same step."""
        signals = [(name, code) for name, code in ranks.gather((self.signal_name, self.exit_code)) if name]
        if signals:
            self.signal_name, self.exit_code = signals[0]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            if is_one_of_several():  # the launcher passes on what this rank may have got already
                return
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        self.exit_code = 128 + number
