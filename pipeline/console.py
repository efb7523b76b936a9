"""How a stage talks to the person who runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the reader can mend: what was wrong, what is allowed, what to do.

    Stages print it as one message and exit with status 1, without a traceback.
    """


def say(message: str) -> None:
    """Print one line now, also where the output is a file or a pipe."""
    print(message, flush=True)


def exit_with(main: Callable[[], None]) -> None:
    """Run a stage's ``main``; turn a `UserError` or a failing file into one message and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr, flush=True)
        sys.exit(130)
