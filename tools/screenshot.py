"""Makes the README's picture from the report, with an installed Chromium."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.core.console import UserError, exit_with, say
from pipeline.core.files import replacing

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PNG_START = b"\x89PNG\r\n\x1a\n"
SECONDS = 120


def main() -> None:
    """Take the picture that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.screenshot",
        description="Take a picture of the first screen of the report with headless Chromium: the one that the README "
        "shows. The same report gives the same picture with the same browser and fonts.",
        epilog="example: python -m tools.screenshot, after dvc repro",
    )
    parser.add_argument("--page", type=Path, default=Path("reports/index.html"), help="the report (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports/screenshot.png"), help="the picture (%(default)s)")
    parser.add_argument("--width", type=int, default=1200, help="pixels (%(default)s)")
    parser.add_argument("--height", type=int, default=1250, help="pixels (%(default)s)")
    parser.add_argument("--dark", action="store_true", help="as a reader sees it whose system is dark")
    arguments = parser.parse_args()
    take_picture(arguments.page, arguments.out, (arguments.width, arguments.height), dark=arguments.dark)
    say(f"{arguments.out}: {arguments.width}x{arguments.height} pixels of {arguments.page}")


def find_browser() -> str:
    """The path of an installed Chromium.

    Raises:
        UserError: If none of `BROWSERS` is installed.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise UserError(
            f"no Chromium is on this machine, looked for: {', '.join(BROWSERS)}; install one, such as with: "
            "apt-get install chromium"
        )
    return path


def take_picture(page: Path, out: Path, size: tuple[int, int], *, dark: bool = False) -> None:
    """Write the top of a page as a PNG.

    Args:
        page: An HTML file.
        out: The PNG file.
        size: Width and height, in pixels.
        dark: Whether the browser asks the page for its dark colours.

    Raises:
        UserError: If there is no such page, no browser, or the browser fails.
    """
    if not page.is_file():
        raise UserError(f"{page} is missing; write it with: dvc repro")
    with replacing(out) as partial_file:
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        run_browser(page, [f"--window-size={size[0]},{size[1]}", f"--screenshot={partial_file.resolve()}", scheme])
        if not partial_file.is_file() or not partial_file.read_bytes().startswith(PNG_START):
            raise UserError(f"the browser took no picture of {page}; does it open there by hand?")


def run_browser(page: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless browser, offline and with a new profile, and return the finished process.

    Raises:
        UserError: If there is no browser, or it fails.
    """
    with TemporaryDirectory() as profile:
        command = [
            find_browser(),
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            # Root, as in a container, cannot use the sandbox; the page is trusted.
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
            *options,
            page.resolve().as_uri(),
        ]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise UserError(f"the browser did not end within {SECONDS} s") from None
    if process.returncode:
        raise UserError(f"the browser failed with status {process.returncode}: {process.stderr.strip()[-300:]}")
    return process


if __name__ == "__main__":
    exit_with(main)
