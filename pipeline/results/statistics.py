"""Estimates with their intervals, and the arithmetic of the claims; a NaN is an error, never dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def format_number(value: float, digits: int = 4) -> str:
    """A number for readers: ``digits`` significant digits, thousands separators and a true minus sign."""
    value = round_significant(value, 9)
    whole = value.is_integer() or abs(value) >= 1000
    text = f"{value:,.0f}" if whole else f"{value:#.{digits}g}".removesuffix(".")
    return text.replace("-", "−")


CONFIDENCE = 0.95
REPEATS = 3  # the fewest seeds, classes, processes or widths over which an interval is computed

MEAN_INTERVAL = "Student’s t interval, 95 %, over three seeds or more"
TIME_INTERVAL = "Student’s t interval, 95 %, over three processes or more"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; ``low`` and ``high`` are None without one.

    ``spread_of`` names the seeds of a kept run whose spread the interval has, if it is not that of this run.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    spread_of: str | None = None

    @property
    def least(self) -> float:
        """The interval's lower end, or the value itself where there is no interval."""
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        """The interval's upper end, or the value itself where there is no interval."""
        return self.value if self.high is None else self.high

    def rounded(self) -> Estimate:
        """The same with every number rounded to six significant digits."""
        low, high = (None if end is None else round_significant(end) for end in (self.low, self.high))
        return Estimate(round_significant(self.value), low, high, self.n, self.spread_of)


def mean_interval(samples: Sequence[float]) -> Estimate:
    """The mean with Student's t interval, of which there is none for fewer than `REPEATS` samples.

    Raises:
        ValueError: If there are no samples, or one is not finite.
    """
    values = _finite(samples)
    mean = float(values.mean())
    if len(values) < REPEATS:
        return Estimate(mean, None, None, len(values))
    half = half_width(samples, len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def half_width(samples: Sequence[float], count: int) -> float:
    """Half of Student's t interval for a mean of ``count`` values whose spread is that of the samples.

    Raises:
        ValueError: If there are fewer than two samples, or one is not finite.
    """
    values = _finite(samples)
    if len(values) < 2:
        raise ValueError("a spread needs two samples or more")
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(count))


def proportion_interval(right: int, total: int) -> Estimate:
    """The share ``right`` of ``total`` independent trials with Wilson's interval.

    Raises:
        ValueError: If there are no trials, or more or fewer of them are right than is possible.
    """
    interval = stats.binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(right / total, float(interval.low), float(interval.high), total)


def median_over_processes(samples: Sequence[float], process: Sequence[int] | None) -> Estimate:
    """The median of each process's samples, their geometric mean, and its Student's t interval on logarithms.

    Repetitions within one process do not show how much faster the same code is in another one. So there is no interval
    over fewer than `REPEATS` processes; ``n`` is their number.

    Args:
        samples: The samples, positive if they are of several processes.
        process: The number of the process that took each sample; None if one process took all.

    Raises:
        ValueError: If there are no samples, or one is not finite, or not positive where it must be.
    """
    medians = _medians(samples, process)
    if len(medians) == 1:
        return Estimate(medians[0], None, None, 1)
    logs = mean_interval(_logarithms(medians))
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Estimate(math.exp(logs.value), low, high, logs.n)


def ratio_over_processes(
    above: Sequence[float],
    above_process: Sequence[int] | None,
    below: Sequence[float],
    below_process: Sequence[int] | None,
) -> Estimate:
    """The ratio of two values of `median_over_processes`, with Welch's t interval on logarithms.

    There is no interval if either is over fewer than `REPEATS` processes; ``n`` is the smaller number of them.

    Raises:
        ValueError: If either has no samples, or one that is not finite and positive.
    """
    upper, lower = (_logarithms(_medians(*times)) for times in ((above, above_process), (below, below_process)))
    value, n = math.exp(np.mean(upper) - np.mean(lower)), min(len(upper), len(lower))
    if n < REPEATS:
        return Estimate(value, None, None, n)
    interval = stats.ttest_ind(upper, lower, equal_var=False).confidence_interval(CONFIDENCE)
    return Estimate(value, math.exp(interval.low), math.exp(interval.high), n)


def log_log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent k of the power law ``value = c size^k``, by least squares on logarithms.

    Raises:
        ValueError: If there are fewer than two sizes, or anything is not finite and positive.
    """
    x, y = _finite(sizes), _finite(values)
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"a slope needs two sizes or more with one value each, got {len(x)} and {len(y)}")
    if np.min(x) <= 0 or np.min(y) <= 0:
        raise ValueError("a slope on logarithms needs positive sizes and values")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def slope_interval(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The slope of the least-squares line, with Student's t interval from its residuals; ``n`` is the number of points.

    Raises:
        ValueError: If there are fewer than `REPEATS` points, or anything is not finite.
    """
    if len(x) < REPEATS:
        raise ValueError(f"the interval of a slope needs {REPEATS} points or more, got {len(x)}")
    line = stats.linregress(_finite(x), _finite(y))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * line.stderr)
    return Estimate(float(line.slope), float(line.slope) - half, float(line.slope) + half, len(x))


def round_significant(value: float, digits: int = 6) -> float:
    """``value`` rounded to ``digits`` significant digits."""
    return float(f"{value:.{digits}g}")


def _finite(samples: Sequence[float]) -> Array:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no samples: there is nothing to estimate from")
    if not np.isfinite(values).all():
        raise ValueError(f"samples must be finite, got {values[~np.isfinite(values)][0]} among {values.size}")
    return values


def _medians(samples: Sequence[float], process: Sequence[int] | None) -> list[float]:
    """The median of each process's samples."""
    values = _finite(samples)
    numbers = np.zeros(len(values)) if process is None else np.asarray(process)
    return [float(np.median(values[numbers == number])) for number in np.unique(numbers)]


def _logarithms(times: Sequence[float]) -> list[float]:
    if min(times) <= 0:
        raise ValueError(f"times must be positive for a mean or ratio on logarithms, got {min(times)}")
    return [math.log(time) for time in times]
