"""Command lines, messages, errors and signals of the commands."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self


def command_parser(command: str, description: str, example: str, *, params: bool = True) -> argparse.ArgumentParser:
    """The parser of ``python -m pipeline.<command>``.

    Args:
        command: The name of the command.
        description: What it does, for ``--help``.
        example: The arguments of an example.
        params: Whether it reads the parameter file, which ``--params`` then names.
    """
    prog = f"python -m pipeline.{command}"
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=f"example: {prog} {example}")
    if params:
        parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameter file (%(default)s)")
    return parser


class UserError(Exception):
    """A mistake that the user can correct; the message says what is wrong, what is allowed, and what to do.

    Stages print it as one message and exit with status 1, without a traceback.
    """


class StoppedError(Exception):
    """A stage that stopped cleanly because a signal asked for it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {message}")
        self.status = 128 + number


class StopRequest:
    """Records SIGTERM and SIGINT within a `with` block so that the work can stop cleanly.

    A second signal of the same kind has its usual effect. One of each kind does not end the process: Ctrl-C reaches
    every process of a terminal, and `pipeline.run`, which cannot detect this, also sends SIGTERM to its stages.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(number, self._handlers.pop(signal.Signals(number)))

    def heed(self, message: str) -> None:
        """Stop if a signal has asked for it, with a message on the state of the work.

        Raises:
            StoppedError: If a signal was received.
        """
        if self.signal is not None:
            raise StoppedError(self.signal, message)


def say(message: str) -> None:
    """Print one line and flush it, so that it appears at once in a file or a pipe too."""
    print(message, flush=True)


def exit_with(main: Callable[[], None]) -> None:
    """Run a stage's ``main``; turn a mistake, a file error or a stop into one message and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        # File names may contain characters that the locale lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        _exit(1, f"error: {error}")
    except OSError as error:
        prefix = f"{error.filename}: " if error.filename else ""
        _exit(1, f"error: {prefix}{error.strerror or error}")
    except StoppedError as stop:
        _exit(stop.status, str(stop))
    except KeyboardInterrupt:
        _exit(130, "stopped by the user")


def _exit(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
