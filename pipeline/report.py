"""The report stage: one self-contained HTML file, made from `reports/` and the templates alone."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.files import write_text
from pipeline.core.params import load_params
from pipeline.page.view import COLLECT, DAMAGES, render


def main() -> None:
    """Render the report that the command line names."""
    parser = command_parser(
        "report",
        "Render what collect has written into one HTML file that needs no network: index.html.",
        example="",
    )
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="the folder of collect (%(default)s)")
    arguments = parser.parse_args()
    page = arguments.reports / "index.html"
    title = load_params(arguments.params).report.title
    try:
        html = render(arguments.reports, title)
    except DAMAGES as error:
        raise UserError(
            f"{arguments.reports} holds something else than collect writes ({type(error).__name__}: {error}): "
            f"write it again with {COLLECT}"
        ) from None
    write_text(page, html)
    say(f"the report is in {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    exit_with(main)
