"""The report stage on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from collected import own_script
from fake_results import Project
from parsed_page import HOSTILE, Page

from pipeline.core.console import UserError
from pipeline.report import main as report_main


def leaves(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value stands that holds no others."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [above]
    return [place for key, own in items for place in leaves(own, (*above, key))]


@pytest.mark.parametrize("name", ["metrics.json", "timings.json", "claims.json", "provenance.json"])
def test_no_value_whatever_it_is_scripts_the_page_or_gives_a_traceback(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for path in project.reports.iterdir():
        (tmp_path / path.name).symlink_to(path)
    original = json.loads((project.reports / name).read_text(encoding="utf-8"))
    arguments = ["report", "--reports", str(tmp_path), "--params", str(project.params)]
    monkeypatch.setattr(sys, "argv", arguments)
    places = leaves(original)
    rendered = 0
    for number in range(24):
        content = json.loads(json.dumps(original))
        *above, last = Random(number).choice(places)
        place = content
        for key in above:
            place = place[key]
        wrong = [HOSTILE, float("nan"), None, 5000 * "n", -(10**400), {}][number % 6]
        if number >= 18:
            del place[last]
        else:
            place[last] = wrong
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        try:
            report_main()
        except UserError as error:
            assert "write it again with" in str(error)  # noqa: PT017 - either the page or the message must be right
            continue
        html = (tmp_path / "index.html").read_text(encoding="utf-8")
        page = Page(html)
        assert own_script(html)
        assert not [one for image in page.all("img") for one in image if one.startswith("on")]
        assert page.open == []
        rendered += 1
    assert rendered
