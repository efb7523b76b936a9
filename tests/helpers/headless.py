"""Opens a page in headless Chromium, if one is installed."""

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

# Runs in the page once it is loaded; writes its answer to an element that `--dump-dom` prints.
QUESTIONS = """
const answer = {
  loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  inner: window.innerWidth, scroll: document.documentElement.scrollWidth,
  scheme: matchMedia("(prefers-color-scheme: dark)").matches, violations: null,
};
const write = () => {
  const element = document.createElement("pre");
  element.id = "answer";
  element.textContent = JSON.stringify(answer);
  parent.document.body.append(element);
};
if (window.axe) {
  axe.run(document, {resultTypes: ["violations"]}).then(report => {
    answer.violations = report.violations.map(rule => [rule.id, rule.impact, rule.nodes[0].html.slice(0, 200)]);
    write();
  });
} else { write(); }
"""


def ask(
    folder: Path, html: str, *options: str, width: int = 1200, script: str = "", questions: str = QUESTIONS
) -> tuple[dict[str, Any], str]:
    """A page's answer in a frame of ``width`` pixels (a window is at least 500 wide), and the browser's console."""
    # The page's policy forbids all scripts but the page's own, so it is removed here.
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert without_policy != html
    scripts = "".join(f"<script>{part}</script>" for part in (script, questions) if part)
    inner = escape(without_policy.replace("</body>", f"{scripts}</body>"))
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{inner}"></iframe>'
    (folder / "frame.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}', encoding="utf-8")
    process = run_browser(
        folder / "frame.html",
        ["--dump-dom", "--virtual-time-budget=30000", "--enable-logging=stderr", "--window-size=1700,1000", *options],
    )
    match = re.search(r'<pre id="answer">(.*?)</pre>', process.stdout, re.DOTALL)
    assert match is not None, process.stderr
    answer: dict[str, Any] = json.loads(unescape(match[1]))
    return answer, "\n".join(line for line in process.stderr.splitlines() if "CONSOLE" in line)
