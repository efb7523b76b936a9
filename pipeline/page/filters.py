"""The templates' filters for numbers and times, and their functions that embed figures."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline.core.console import UserError
from pipeline.results.looks import INK
from pipeline.results.statistics import format_number

COLLECT = "python -m pipeline.collect (or dvc repro)"


def number(value: float | None, digits: int = 4) -> str:
    """A number for readers, or a dash for None."""
    return "–" if value is None else format_number(value, digits)


def as_yaml(value: Any, *, sort: bool = False) -> str:
    """A value as block YAML, with the keys of each mapping in their order or sorted."""
    text = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = sort  # type: ignore[assignment]
    writer.dump(value, text)
    return text.getvalue().removesuffix("...\n")


def day(time: str) -> str:
    """An ISO-8601 time in UTC to the minute, for readers."""
    return time[:16].replace("T", " ") + " UTC"


def duration(seconds: float) -> str:
    """A time for readers: in seconds below two minutes, then in minutes and seconds, then in hours and minutes."""
    whole = round(seconds)
    if whole < 120:
        return f"{format_number(seconds, 2)} s" if seconds < 9.95 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def data_uri(path: Path) -> str:
    """A PNG as a data URI."""
    content = _bytes(path)
    if not (content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")):
        raise UserError(f"{path} is damaged: write it again with {COLLECT}")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def inline_svg(path: Path, alt: str) -> Markup:
    """A figure for inlining: its ids become unique, its ink the text colour, and the page sets its size."""
    text = _bytes(path).decode("utf-8", errors="replace")
    body = text[text.find("<svg") :]
    box = re.search(r'viewBox="[\d. ]+"', body)
    if box is None or not body.rstrip().endswith("</svg>"):
        raise UserError(f"{path} is not a figure of collect, or a damaged one: write it again with {COLLECT}")
    inner = body[body.index(">") + 1 :]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\bid="', f'id="{path.stem}-', inner)
    inner = re.sub(r"url\(#", f"url(#{path.stem}-", inner)
    inner = re.sub(r'xlink:href="#', f'href="#{path.stem}-', inner)
    inner = inner.replace(INK, "currentColor")
    opening = Markup('<svg xmlns="http://www.w3.org/2000/svg" {} role="img" aria-label="{}">')
    return opening.format(Markup(box[0]), alt) + Markup(inner)  # noqa: S704 - drawn by collect, which escapes text


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: write it with {COLLECT}") from None
