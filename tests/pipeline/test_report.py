"""Tests that the report command copes with any invalid value in its files, without traceback or script."""

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


def leaves(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each value that contains no other values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [prefix]
    return [path for key, child in items for path in leaves(child, (*prefix, key))]


@pytest.mark.parametrize("name", ["metrics.json", "timings.json", "claims.json", "provenance.json"])
def test_no_invalid_value_injects_script_or_gives_a_traceback(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for path in project.reports.iterdir():
        (tmp_path / path.name).symlink_to(path)
    original = json.loads((project.reports / name).read_text(encoding="utf-8"))
    arguments = ["report", "--reports", str(tmp_path), "--params", str(project.params)]
    monkeypatch.setattr(sys, "argv", arguments)
    paths = leaves(original)
    rendered = 0
    for number in range(24):
        content = json.loads(json.dumps(original))
        *parents, last = Random(number).choice(paths)
        container = content
        for key in parents:
            container = container[key]
        wrong = [HOSTILE, float("nan"), None, 5000 * "n", -(10**400), {}][number % 6]
        if number >= 18:
            del container[last]
        else:
            container[last] = wrong
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
