"""How a stage talks to the person who runs it."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Self


class UserError(Exception):
    """A mistake that the reader can mend: what was wrong, what is allowed, what to do.

    Stages print it as one message and exit with status 1, without a traceback.
    """


class StoppedError(Exception):
    """A stage that has come to a good stop because a signal asked for it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {message}")
        self.status = 128 + number


class StopRequest:
    """What SIGTERM and SIGINT ask for, noted within a `with` block so that the work can come to a good stop.

    The same signal once more ends the process as it would have without. One of each does not: Ctrl-C reaches every
    process of a terminal, and `pipeline.run`, which cannot know that it did, asks its stages once more by SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(number, self._before.pop(signal.Signals(number)))

    def heed(self, message: str) -> None:
        """Stop if a signal has asked for it, with a message that says how things stand.

        Raises:
            StoppedError: If so.
        """
        if self.signal is not None:
            raise StoppedError(self.signal, message)


def say(message: str) -> None:
    """Print one line now, also where the output is a file or a pipe."""
    print(message, flush=True)


def exit_with(main: Callable[[], None]) -> None:
    """Run a stage's ``main``; turn a mistake, a failing file or a stop into one message and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold letters that the locale lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        _exit(1, f"error: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _exit(1, f"error: {place}{error.strerror or error}")
    except StoppedError as stop:
        _exit(stop.status, str(stop))
    except KeyboardInterrupt:
        _exit(130, "stopped by the user")


def _exit(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
