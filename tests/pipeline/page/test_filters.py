"""Numbers, times and figures as the page shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.console import UserError
from pipeline.page.filters import duration, inline_svg


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.040 s"), (9.94, "9.9 s"), (42.4, "42 s"), (119.4, "119 s"), (192, "3 min 12 s"), (7384, "2 h 3 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_figure_without_a_box_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.svg").write_text("<svg></svg>", encoding="utf-8")
    with pytest.raises(UserError, match="not a figure"):
        inline_svg(tmp_path / "x.svg", "alt")
