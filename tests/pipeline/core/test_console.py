"""How a stage is stopped."""

from __future__ import annotations

import signal

import pytest

from pipeline.core.console import StopRequest

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1]])
def test_a_signal_of_each_kind_is_one_request_and_the_first_is_told(
    first: signal.Signals, second: signal.Signals
) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with StopRequest() as request:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert request.signal == first
    assert [signal.getsignal(number) for number in BOTH] == before


def test_the_same_signal_a_second_time_does_what_it_would_have_done() -> None:
    # Where the tests run in the background of a shell it would be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
