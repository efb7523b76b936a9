"""Tests that a missing figure is an error that says why."""

from __future__ import annotations

import pytest

from pipeline.results.subjects import Subject, Times, UndecidedError


def test_figures_by_name() -> None:
    times = Times([1.0, 2.0], "step", "ms")
    subject = Subject({"bits_per_dim": {0: 1.5, 2: 1.6}}, {"step_ms": times})
    assert subject.metric("bits_per_dim") == {0: 1.5, 2: 1.6}
    assert subject.time("step_ms") is times


def test_a_missing_figure_has_its_label_or_the_trouble() -> None:
    for subject, message in (
        (Subject(), "there is no figure for the median"),
        (Subject({"median": {}}, trouble="seed 0 of lunet: diverged"), "seed 0 of lunet: diverged"),
    ):
        with pytest.raises(UndecidedError, match=message) as caught:
            subject.metric("bits_per_dim_median", "median")
        assert caught.value.verdict == "not_tested"
    with pytest.raises(UndecidedError, match="step_ms was not measured"):
        Subject().time("step_ms")
    with pytest.raises(UndecidedError, match="out of memory"):
        Subject(trouble="out of memory").time("step_ms")
