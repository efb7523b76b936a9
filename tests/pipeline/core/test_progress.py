"""Progress of a long loop without a terminal: lines at intervals and at the end."""

from __future__ import annotations

import pytest

from pipeline.core.progress import Progress


def test_lines_come_at_intervals_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 4.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr("pipeline.core.progress.time.monotonic", lambda: next(seconds))
    with Progress("work", 8, done=4) as progress:
        for step in range(4):
            progress.step(f"note {step}")
    assert capsys.readouterr().out.splitlines() == [
        "work: step 6/8, note 1, 00:10 left",
        "work: step 8/8, note 3, 00:00 left",
    ]
