"""Readers of the files that collect and report write."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from typing import Any

from fake_results import Project
from parsed_page import Page


def own_script(html: str) -> str:
    """The page's only script; asserts that it is the one that the page's policy allows."""
    policy = next(meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert html.count("<script") == html.count("</script") == len(scripts) == 1
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy.split("; ")[:2] == ["default-src 'none'", f"script-src 'sha256-{allowed}'"]
    return str(scripts[0])


def content(project: Project, name: str) -> Any:
    return json.loads((project.reports / name).read_text(encoding="utf-8"))


def table(project: Project, name: str) -> list[dict[str, str]]:
    with (project.reports / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
