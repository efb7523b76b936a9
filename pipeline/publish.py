"""Checks the archive of a run, and adds it to a published run or makes a new one, of little more than its records."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.files import refuse_foreign, replacing, sha256, write_json
from pipeline.core.git import git
from pipeline.core.params import load_params
from pipeline.results.image_grid import write_grid
from pipeline.results.kept import MANIFEST, PARAMS, Manifest, read_run
from pipeline.results.reading import read_mixture
from pipeline.runner.archive import CODE, code_digests, unpack
from pipeline.runner.merging import MIXTURE, Published, copy, merge, records
from pipeline.runner.steps import files_under

PUBLISHED = Path("reports/published")
LARGEST = 2_000_000  # bytes of a published run in git
# The grids of images that a published run has, of the first complete seed of each recipe on each data set.
GRIDS = ("samples", "by_class", "fitted_base")


def main() -> None:
    """Publish the archive that the command line names."""
    parser = command_parser(
        "publish",
        "Check an archive of python -m pipeline.run --out, and publish it as reports/published/NAME: whole or not at "
        "all, with its records and a few samples, from which python -m pipeline.collect judges it by today's rules. If "
        "there is such a run, the cells are added that it lacks or has in part. It needs no data sets.",
        example="archive/run.tar.gz paper-h100",
        params=False,
    )
    parser.add_argument("archive", type=Path, help="the .tar.gz file")
    parser.add_argument("name", help="what to call it: small letters, digits, . _ and -")
    parser.add_argument("--replace", action="store_true", help="where both are complete, take the cells of the archive")
    arguments = parser.parse_args()
    say(publish(arguments.archive, arguments.name, replace=arguments.replace))


def publish(archive: Path, name: str, *, replace: bool) -> str:
    """Publish an archive, or add it to a published run; returns a summary for the reader.

    Raises:
        UserError: If the archive or the name is invalid, or does not go with the published run, or both would be too
            large; then nothing has changed.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,60}", name):
        raise UserError(f"the name {name!r} is not allowed; give small letters, digits, and . _ - within")
    target = PUBLISHED / name
    refuse_foreign(target, MANIFEST)
    with tempfile.TemporaryDirectory() as temporary, replacing(target) as folder:
        whole = Path(temporary)
        manifest = with_commit(unpack(archive, whole))
        new = Published(whole, manifest, load_params(whole / PARAMS))
        if target.exists():
            manifest = merge(Published.read(target), new, replace=replace)
        else:
            update = {"cells": new.labelled(manifest.cells), "runs": new.origins()}
            manifest = manifest.model_copy(update=update)
        bring_mixture(whole)
        try:
            keep(whole, folder, manifest)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    return f"{target}: {summary(manifest)}"


def with_commit(manifest: Manifest) -> Manifest:
    """The manifest with the present commit if it has none, and the present commit has the code that was run."""
    is_present = manifest.code == code_digests() and git("status", "--porcelain", "--", *CODE) == ""
    if manifest.commit is None and is_present and (commit := git("rev-parse", "HEAD")):
        return manifest.model_copy(update={"commit": commit, "dirty": False})
    return manifest


def bring_mixture(folder: Path) -> None:
    """Bring the experiment in two dimensions if a run lacks it: from `runs/`, or by running it here."""
    if (folder / MIXTURE).is_file():
        return
    try:
        read_mixture(MIXTURE.parent, load_params(folder / PARAMS))
    except UserError:
        say("the experiment in two dimensions is missing, and runs now")
        options = ["--params", str(folder / PARAMS), "--out", str(folder / MIXTURE)]
        if subprocess.run([sys.executable, "-m", "pipeline.mixture", *options], check=False).returncode != 0:
            raise UserError("the stage mixture failed; its message is above") from None
    else:
        copy(MIXTURE, folder / MIXTURE)


def keep(whole: Path, folder: Path, manifest: Manifest) -> None:
    """Write a published run: what rules read of a run, samples to look at, and the manifest.

    Args:
        whole: The run with all its files.
        folder: The folder to write.
        manifest: The manifest of the whole run.

    Raises:
        UserError: If the records are not what the manifest says, or the published run would be too large.
    """
    cells = [cell for cell in manifest.cells if cell.has_record]
    for file in (Path(PARAMS), MIXTURE, *(file for cell in cells for file in records(cell.stage, cell.key))):
        copy(whole / file, folder / file)
    for grid in sample_grids(whole, manifest):
        target = folder / grid.relative_to(whole).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        if grid.suffix == ".png":
            copy(grid, target)
            continue
        try:
            write_grid(target, np.load(grid, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise UserError(f"{grid.relative_to(whole)} is no grid of images ({error})") from None
    read_run(folder, manifest)
    files = {file.relative_to(folder).as_posix(): file for file in files_under(folder)}
    checksums = {name: sha256(file) for name, file in sorted(files.items())}
    write_json(folder / MANIFEST, manifest.model_copy(update={"files": checksums}).model_dump(mode="json"))
    sizes = {name: (folder / name).stat().st_size for name in (*files, MANIFEST)}
    if sum(sizes.values()) > LARGEST:
        largest = ", ".join(f"{name} ({sizes[name]:,})" for name in sorted(sizes, key=sizes.__getitem__)[:-4:-1])
        raise UserError(
            f"it would take {sum(sizes.values()):,} bytes as a published run; at most {LARGEST:,} are allowed, and its "
            f"largest files are {largest}"
        )


def sample_grids(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """The files of `GRIDS`, arrays or pictures, of the first complete seed of each recipe on each data set."""
    complete = [cell.key for cell in manifest.cells if cell.stage == "evaluate" and cell.status == "complete"]
    for key in {key[:2]: key for key in reversed(complete)}.values():
        files = {file.stem: file for file in files_under(folder / "runs/samples" / str(key))}
        yield from (files[name] for name in GRIDS if name in files)


def summary(manifest: Manifest) -> str:
    """A summary of a published run: its size, its unfinished cells, and doubts about its commit."""
    finished = sum(cell.finished for cell in manifest.cells)
    lines = [f"the preset {manifest.preset}, {finished} of {len(manifest.cells)} cells"]
    lines += [
        f"  {cell.stage} {cell.key}: {cell.status}{f', {cell.message}' if cell.message else ''}"
        for cell in manifest.cells
        if cell.status != "complete"
    ]
    if len({origin.code for origin in manifest.runs}) > 1:
        lines.append(f"  its cells are of {len(manifest.runs)} runs, with different code")
    if any(origin.commit is None for origin in manifest.runs):
        lines.append("  its commit is unknown: its cells tell none, or several, and the present one has other code")
    for origin in manifest.runs:
        if origin.dirty and origin.commit:
            lines.append(f"  its code is commit {origin.commit[:12]} with changes that were not committed")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with(main)
