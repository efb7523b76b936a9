"""How busy other processes kept the machine, beside every figure that contains a time."""

from __future__ import annotations

import os
import time

import psutil

IDLE = ("idle", "iowait", "steal")


class OtherCores:
    """Counts from its construction how many cores other processes keep busy."""

    def __init__(self) -> None:
        self._begin = time.monotonic(), busy_seconds(), own_seconds()

    def mean(self, more: float = 0.0) -> float:
        """The mean number of cores so far, at least 0.

        Args:
            more: CPU seconds of processes that are this one's own but not its children, which it cannot count.
        """
        began, busy, own = self._begin
        others = busy_seconds() - busy - (own_seconds() - own) - more
        return round(max(0.0, others / max(time.monotonic() - began, 1e-3)), 3)


def busy_seconds() -> float:
    """The CPU seconds that all processes of the machine have used since it was started."""
    times = psutil.cpu_times()._asdict()
    # A guest's time is part of user's.
    return float(sum(value for name, value in times.items() if name not in IDLE and not name.startswith("guest")))


def own_seconds() -> float:
    """The CPU seconds of this process and of its children that have ended."""
    return float(sum(os.times()[:4]))
