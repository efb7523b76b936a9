"""The page in a headless Chromium, where there is one."""

from __future__ import annotations

import json
import re
import shutil
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from tools.screenshot import BROWSERS, run_browser

BROWSER = any(map(shutil.which, BROWSERS))
browser = pytest.mark.skipif(not BROWSER, reason=f"no Chromium here, looked for: {', '.join(BROWSERS)}")

# What is asked of a page once it is loaded; the answer is left where `--dump-dom` shows it.
QUESTIONS = """
const answer = {
  loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  inner: window.innerWidth, scroll: document.documentElement.scrollWidth,
  scheme: matchMedia("(prefers-color-scheme: dark)").matches, violations: null,
};
const leave = () => {
  const place = document.createElement("pre");
  place.id = "answer";
  place.textContent = JSON.stringify(answer);
  parent.document.body.append(place);
};
if (window.axe) {
  axe.run(document, {resultTypes: ["violations"]}).then(found => {
    answer.violations = found.violations.map(one => [one.id, one.impact, one.nodes[0].html.slice(0, 200)]);
    leave();
  });
} else { leave(); }
"""


def ask(
    folder: Path, html: str, *options: str, width: int = 1200, script: str = "", questions: str = QUESTIONS
) -> tuple[dict[str, Any], str]:
    """What a page answers in a frame of a width, and what the browser has logged; a window is 500 wide at least."""
    # Other scripts run here alone: the page itself forbids all but its own.
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert opened != html
    scripts = "".join(f"<script>{part}</script>" for part in (script, questions) if part)
    inner = escape(opened.replace("</body>", f"{scripts}</body>"))
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{inner}"></iframe>'
    (folder / "frame.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}', encoding="utf-8")
    done = run_browser(
        folder / "frame.html",
        ["--dump-dom", "--virtual-time-budget=30000", "--enable-logging=stderr", "--window-size=1700,1000", *options],
    )
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    answer: dict[str, Any] = json.loads(unescape(found[1]))
    return answer, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
