"""Checks the archive of a run, adds it to a published run or makes a new one, and writes its tables and figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pipeline.collect import collect
from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.dataset import load_dataset
from pipeline.core.files import read_json, refuse_foreign, replacing, sha256, write_json
from pipeline.core.git import git
from pipeline.core.params import Params, load_params
from pipeline.page.published_runs import MANIFEST, Manifest
from pipeline.page.view import DAMAGES, render
from pipeline.results.reading import CellStatus, read_mixture
from pipeline.runner.archive import CODE, PARAMS, check_files, check_results, code_digests, unpack
from pipeline.runner.merging import MIXTURE, Published, copy, merge
from pipeline.runner.steps import files_under

PUBLISHED = Path("reports/published")


def main() -> None:
    """Publish the archive that the command line names."""
    parser = command_parser(
        "publish",
        "Check an archive of python -m pipeline.run --out, and publish it as reports/published/NAME, with the tables "
        "and figures that its results give: whole or not at all. If there is such a run, the cells are added that it "
        "lacks or has in part. It needs the data sets in data/.",
        example="archive/run.tar.gz paper-h100",
        params=False,
    )
    parser.add_argument("archive", type=Path, help="the .tar.gz file")
    parser.add_argument("name", help="what to call it: small letters, digits, . _ and -")
    parser.add_argument("--replace", action="store_true", help="where both are complete, take the cells of the archive")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data sets' folder (%(default)s)")
    arguments = parser.parse_args()
    say(publish(arguments.archive, arguments.name, replace=arguments.replace, data=arguments.data))


def publish(archive: Path, name: str, *, replace: bool, data: Path = Path("data")) -> str:
    """Publish an archive, or add it to a published run; returns a summary for the reader.

    Raises:
        UserError: If the archive or the name is invalid, or does not go with the published run; then nothing has
            changed.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,60}", name):
        raise UserError(f"the name {name!r} is not allowed; give small letters, digits, and . _ - within")
    target = PUBLISHED / name
    refuse_foreign(target, MANIFEST)
    with replacing(target) as folder:
        manifest = with_commit(unpack(archive, folder))
        new = Published(folder, manifest, load_params(folder / PARAMS))
        if target.exists():
            manifest = merge(Published.read(target), new, replace=replace)
        else:
            update = {"cells": new.labelled(manifest.cells), "runs": new.origins()}
            manifest = manifest.model_copy(update=update)
        (folder / MANIFEST).unlink()
        try:
            write_reports(folder, manifest, data)
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    return f"{target}: {summary(manifest)}"


def with_commit(manifest: Manifest) -> Manifest:
    """The manifest with the present commit if it has none, and the present commit has the code that was run."""
    is_present = manifest.code == code_digests() and git("status", "--porcelain", "--", *CODE) == ""
    if manifest.commit is None and is_present and (commit := git("rev-parse", "HEAD")):
        return manifest.model_copy(update={"commit": commit, "dirty": False})
    return manifest


def write_reports(folder: Path, manifest: Manifest, data: Path) -> None:
    """Write what collect makes of the results in a folder, and the manifest of all files.

    Raises:
        UserError: If the results are faulty, or the data missing or not those of the run.
    """
    check_results(folder, manifest)
    params = load_params(folder / PARAMS)
    for name in params.grid.datasets:
        dataset = load_dataset(data / name, name)
        if manifest.data.get(name, dataset.info["sha256"]) != dataset.info["sha256"]:
            raise UserError(f"{data / name} is not the data that the run was made from")
    bring_mixture(folder, params)
    collect(folder / PARAMS, data, folder / "runs", folder, unfinished=unfinished_of(manifest.cells))
    try:
        render(folder, params.report.title)
    except DAMAGES as error:
        raise UserError(f"no report can be made of it: {type(error).__name__}: {error}") from None
    contents = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files_under(folder)}
    check_files("the published run", contents)
    update = {
        "format": 2,
        "environments": read_json(folder / "provenance.json")["environments"],
        "files": {name: sha256(content) for name, content in sorted(contents.items())},
    }
    write_json(folder / MANIFEST, manifest.model_copy(update=update).model_dump(mode="json"))


def bring_mixture(folder: Path, params: Params) -> None:
    """Bring the experiment in two dimensions if a run lacks it: from `runs/`, or by running it here."""
    if (folder / MIXTURE[0]).is_file():
        return
    try:
        read_mixture(MIXTURE[0].parent, params)
    except UserError:
        say("the experiment in two dimensions is missing, and runs now")
        options = ["--params", str(folder / PARAMS), "--out", str(folder / MIXTURE[0])]
        if subprocess.run([sys.executable, "-m", "pipeline.mixture", *options], check=False).returncode != 0:
            raise UserError("the stage mixture failed; its message is above") from None
    else:
        for file in MIXTURE:
            copy(file, folder / file)


def unfinished_of(cells: list[CellStatus]) -> list[CellStatus]:
    """The cells without results, but for evaluations whose training has none either."""
    untrained = {cell.key for cell in cells if cell.stage == "train" and not cell.has_record}
    return [cell for cell in cells if not cell.has_record and not (cell.stage == "evaluate" and cell.key in untrained)]


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
