"""Progress of a long loop: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pipeline.core.console import say

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts the steps of a loop and shows them with a note and the time left.

    Args:
        name: The name of the loop.
        total: The number of steps.
        done: The number of steps completed before.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self._name = name
        self._lines = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit="step", disable=self._lines, dynamic_ncols=True)
        self._total, self._done_at_start, self._done = total, done, done
        self._start = self._shown = time.monotonic()

    def step(self, note: str, count: int = 1) -> None:
        """Count ``count`` completed steps; ``note`` describes the state of the loop."""
        self._done += count
        if not self._lines:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif (now := time.monotonic()) - self._shown >= SECONDS_BETWEEN_LINES or self._done == self._total:
            self._shown = now
            left = (now - self._start) / (self._done - self._done_at_start) * (self._total - self._done)
            say(f"{self._name}: step {self._done}/{self._total}, {note}, {tqdm.format_interval(left)} left")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
