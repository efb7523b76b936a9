"""Checks the archive of a run and unpacks it to `reports/published/`."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.files import refuse_foreign, replacing, write_json
from pipeline.core.git import git
from pipeline.page.published_runs import MANIFEST, Manifest
from pipeline.runner.archive import CODE, code_digests, unpack

PUBLISHED = Path("reports/published")


def main() -> None:
    """Publish the archive that the command line names."""
    parser = command_parser(
        "publish",
        "Check an archive of python -m pipeline.run --pack, and lay it down as reports/published/NAME, "
        "whole or not at all: checksums, paths, sizes, no path of a machine in any text, results as they should be.",
        example="paper.tar.gz paper-h100",
        params=False,
    )
    parser.add_argument("archive", type=Path, help="the .tar.gz file")
    parser.add_argument("name", help="what to call it: small letters, digits, . _ and -")
    parser.add_argument("--replace", action="store_true", help="put it in the place of what has that name")
    arguments = parser.parse_args()
    say(publish(arguments.archive, arguments.name, replace=arguments.replace))


def publish(archive: Path, name: str, *, replace: bool) -> str:
    """Publish an archive; returns a summary for the reader.

    Raises:
        UserError: If the archive or the name is invalid; then nothing has changed.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,60}", name):
        raise UserError(f"the name {name!r} is not allowed; give small letters, digits, and . _ - within")
    target = PUBLISHED / name
    if target.exists() and not replace:
        raise UserError(f"{target} is there already; give another name, or --replace")
    refuse_foreign(target, MANIFEST)
    with replacing(target) as folder:
        manifest = unpack(archive, folder)
        # A run without git has the present commit if that has the code that was run.
        is_present = manifest.code == code_digests() and git("status", "--porcelain", "--", *CODE) == ""
        if manifest.commit is None and is_present and (commit := git("rev-parse", "HEAD")):
            manifest = manifest.model_copy(update={"commit": commit, "dirty": False})
            write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return f"{target}: {summary(manifest)}"


def summary(manifest: Manifest) -> str:
    """A summary of a published run: its size, its unfinished cells, and doubts about its commit."""
    finished = sum(cell.finished for cell in manifest.cells)
    lines = [f"{len(manifest.files)} files of the preset {manifest.preset}, {finished} of {len(manifest.cells)} cells"]
    lines += [
        f"  {cell.stage} {cell.key}: {cell.status}{f', {cell.message}' if cell.message else ''}"
        for cell in manifest.cells
        if cell.status != "complete"
    ]
    if manifest.commit is None:
        lines.append("  its commit is unknown: its cells tell none, or several, and the present one has other code")
    elif manifest.dirty:
        lines.append(f"  its code is commit {manifest.commit[:12]} with changes that were not committed")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with(main)
