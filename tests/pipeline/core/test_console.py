"""Stop requests: one signal stops a stage cleanly, a repeated one ends it at once."""

from __future__ import annotations

import signal

import pytest

from pipeline.core.console import StopRequest

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1]])
def test_one_signal_of_each_kind_is_one_request_and_the_first_is_recorded(
    first: signal.Signals, second: signal.Signals
) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with StopRequest() as request:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert request.signal == first
    assert [signal.getsignal(number) for number in BOTH] == before


def test_a_second_signal_of_the_same_kind_has_its_usual_effect() -> None:
    # A shell that runs the tests in the background would have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
