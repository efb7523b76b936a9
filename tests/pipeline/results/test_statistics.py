"""Tests of intervals, ratios and slopes against known values, and of their edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.results.statistics import (
    Estimate,
    format_number,
    half_width,
    log_log_slope,
    mean_interval,
    median_over_processes,
    proportion_interval,
    ratio_over_processes,
    round_significant,
    slope_interval,
)

# Means


def test_mean_interval_is_students() -> None:
    estimate = mean_interval([1.0, 2.0, 3.0])
    # t(0.975, 2 degrees of freedom) = 4.302653, standard error 1/sqrt(3)
    assert estimate.value == 2.0
    assert estimate.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert estimate.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert estimate.n == 3


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    intervals = [mean_interval(random.normal(5.0, 2.0, 4).tolist()) for _ in range(2_000)]
    share = np.mean([interval.least <= 5.0 <= interval.most for interval in intervals])
    assert 0.935 < share < 0.965  # three standard errors around 0.95


def test_the_width_for_fewer_values_than_the_spread_is_known_from() -> None:
    # The standard deviation of 1, 2, 3 is 1, and t(0.975, 2 degrees of freedom) = 4.302653.
    assert half_width([1.0, 2.0, 3.0], 1) == pytest.approx(4.302653, abs=1e-6)
    assert half_width([1.0, 2.0, 3.0], 4) == pytest.approx(4.302653 / 2, abs=1e-6)
    with pytest.raises(ValueError, match="two samples"):
        half_width([1.0], 1)


def test_a_proportion_has_wilson_s_interval() -> None:
    estimate = proportion_interval(38, 100)
    # By Wilson's formula, with z = 1.959964.
    z2 = 1.959964**2
    centre, half = (0.38 + z2 / 200) / (1 + z2 / 100), 1.959964 * math.sqrt(0.38 * 0.62 / 100 + z2 / 40_000)
    assert (estimate.value, estimate.n) == (0.38, 100)
    assert estimate.low == pytest.approx(centre - half / (1 + z2 / 100), abs=1e-6)
    assert estimate.high == pytest.approx(centre + half / (1 + z2 / 100), abs=1e-6)
    assert proportion_interval(100, 100).high == pytest.approx(1)
    with pytest.raises(ValueError, match="k"):
        proportion_interval(11, 10)


# Processes


def test_the_interval_of_a_time_is_over_processes() -> None:
    # The processes' medians are 1, 2 and 4, whose logarithms are ln 2 apart.
    estimate = median_over_processes([1.0, 3.0, 2.0, 5.0, 0.5, 1.0, 2.0], [3, 8, 5, 8, 3, 3, 5])
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert estimate.value == pytest.approx(2)
    assert estimate.n == 3
    assert estimate.low == pytest.approx(2 * math.exp(-half), rel=1e-6)
    assert estimate.high == pytest.approx(2 * math.exp(half), rel=1e-6)


def test_many_repetitions_in_one_or_two_processes_give_no_interval() -> None:
    samples = [*np.linspace(1, 3, 101)]
    assert median_over_processes(samples, None) == Estimate(2.0, None, None, 1)
    assert median_over_processes(samples, [4] * 101) == Estimate(2.0, None, None, 1)
    two = median_over_processes([*samples, 8.0], [1] * 101 + [2])
    assert two == Estimate(two.value, None, None, 2)
    assert two.value == pytest.approx(4.0)
    assert median_over_processes([0.0], None).value == 0  # an increase of memory


def test_a_ratio_over_processes_is_that_of_the_values_with_welch_s_interval() -> None:
    above, below = [2.0, 3.0, 5.0, 4.0], [1.0, 1.1, 1.3]
    estimate = ratio_over_processes(above, [1, 2, 3, 4], below, [1, 2, 3])
    values = [median_over_processes(samples, range(len(samples))).value for samples in (above, below)]
    assert estimate.value == pytest.approx(values[0] / values[1])
    # Welch's degrees of freedom, from the squared standard errors of both means of logarithms.
    squares = [np.var(np.log(samples), ddof=1) / len(samples) for samples in (above, below)]
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / 3 + squares[1] ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(squares))
    assert estimate.low == pytest.approx(estimate.value * math.exp(-half))
    assert estimate.high == pytest.approx(estimate.value * math.exp(half))
    assert estimate.n == 3


def test_a_ratio_needs_three_processes_of_each_for_an_interval() -> None:
    for process in ([1, 1, 2], None):
        estimate = ratio_over_processes([2.0, 3.0, 4.0], [1, 2, 3], [1.0, 1.0, 1.0], process)
        assert estimate.value == pytest.approx(24 ** (1 / 3))
        assert (estimate.low, estimate.high) == (None, None)
    with pytest.raises(ValueError, match="positive"):
        ratio_over_processes([1.0], None, [0.0], None)


def test_intervals_over_processes_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    process = [*np.repeat([1, 2, 3], 5)]
    covered = []
    for _ in range(1_000):
        # Processes differ by 10 %, and the repetitions within them by 1 %.
        one, other = (
            np.exp(np.repeat(random.normal(0, 0.1, 3), 5) + random.normal(0, 0.01, 15)).tolist() for _ in range(2)
        )
        estimates = median_over_processes(one, process), ratio_over_processes(one, process, other, process)
        covered.append([estimate.least <= 1 <= estimate.most for estimate in estimates])
    shares = np.mean(covered, axis=0)
    assert all(abs(share - 0.95) < 0.035 for share in shares), shares


# Slopes


def test_slope_of_a_power_law() -> None:
    widths = [64, 128, 512, 4096]
    assert log_log_slope(widths, [7 * width**2.5 for width in widths]) == pytest.approx(2.5, abs=1e-9)
    for sizes, values in (([64], [1.0]), ([64, 128], [1.0, 0.0]), ([64, 128], [1.0])):
        with pytest.raises(ValueError, match="slope"):
            log_log_slope(sizes, values)


def test_the_interval_of_a_slope_is_student_s() -> None:
    # The line is 1.5 + 0.8 (x - 1.5); its residuals -0.3, 0.9, -0.9, 0.3 have the sum of squares 1.8, and x has 5.
    half = 4.302653 * math.sqrt(1.8 / 2 / 5)
    found = slope_interval([0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 0.8 + half), abs=1e-6)
    assert found.n == 4
    with pytest.raises(ValueError, match="3 points or more, got 2"):
        slope_interval([0.0, 1.0], [0.0, 1.0])


# Edges, the same for all


def test_one_sample_or_two_have_no_interval_and_equal_ones_a_point() -> None:
    one, two, equal = mean_interval([2.5]), mean_interval([2.0, 3.0]), mean_interval([0.1] * 5)
    assert (one.value, one.low, one.high, one.n) == (2.5, None, None, 1)
    assert (two.value, two.low, two.high, two.n) == (2.5, None, None, 2)
    assert (one.least, one.most) == (2.5, 2.5)
    assert equal.value == equal.low == equal.high == pytest.approx(0.1)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_nothing_and_nan_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        mean_interval(samples)
    with pytest.raises(ValueError, match="samples"):
        median_over_processes(samples, None)
    with pytest.raises(ValueError, match="samples"):
        ratio_over_processes(samples, None, [1.0], None)


def test_rounding_keeps_significant_digits() -> None:
    assert round_significant(123456.789) == 123457
    assert round_significant(0.000123456789) == 0.000123457


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.8523, "1.852"),
        (-0.05, "−0.05000"),
        (3725.4, "3,725"),
        (3.0, "3"),
        (1e6 * (1 - 0.99999), "10"),
        (999.96, "1000"),
    ],
)
def test_numbers_for_readers(value: float, text: str) -> None:
    assert format_number(value) == text
