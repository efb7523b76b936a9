"""Made-up runs under `reports/published/`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fake_results import Project

from pipeline.core.cell import cells_of
from pipeline.core.files import read_json, sha256, write_json
from pipeline.core.params import load_params
from pipeline.presets.merged import load_preset
from pipeline.publish import keep
from pipeline.results.comparison import comparison
from pipeline.results.kept import Description, Kept, Manifest, read_kept
from pipeline.results.metrics import subjects_of
from pipeline.results.reading import RECORDS, CellStatus, read_record, record_path
from pipeline.results.tables import curves_table
from pipeline.results.verdicts import claims_of
from pipeline.runner.archive import epochs_of
from pipeline.runner.steps import files_under

CREATED = "2026-01-02T03:04:05+00:00"


def publish(source: Project, reports: Path, name: str, **fields: Any) -> Path:
    """Publish the results of a project as `pipeline.publish` does; ``fields`` are those of its manifest."""
    folder = reports / "published" / name
    shutil.rmtree(folder, ignore_errors=True)
    keep(source.root, folder, manifest_of(source, **fields))
    return folder


def manifest_of(source: Project, **fields: Any) -> Manifest:
    """The manifest of a project's results: a cell without a record is missing."""
    params, cells = load_params(source.params), []
    for stage, keys in cells_of(params).items():
        for key in keys:
            state: dict[str, Any] = {"status": "missing", "message": "not begun"}
            if record_path(source.runs, stage, key).is_file():
                record = read_record(RECORDS[stage], source.runs, params, key)
                state = {"status": record.status, "message": record.message, "epochs": epochs_of(record)}
            cells.append(CellStatus.model_validate({"stage": stage, **key._asdict(), **state}))
    data = {path.name: Description.model_validate(read_json(path / "dataset.json")) for path in source.data.iterdir()}
    run = {"created": CREATED, "commit": "beef" + 36 * "0", "dirty": False}
    about: dict[str, Any] = {**run, "preset": params.preset, "cells": cells, "data": data, "code": {}, "files": {}}
    return Manifest.model_validate({**about, "runs": [{**run, "code": ""}], **fields})


def seal(folder: Path, **fields: Any) -> None:
    """Write the checksums of the files as they are into the manifest; ``fields`` replace others."""
    manifest = read_json(folder / "manifest.json")
    names = {file.relative_to(folder).as_posix(): file for file in files_under(folder)}
    del names["manifest.json"]
    files = {name: sha256(file) for name, file in names.items()}
    write_json(folder / "manifest.json", {**manifest, "files": files, **fields})


def compared(this: Project, reports: Path) -> dict[str, Any]:
    """Write `claims.json` and `comparison.json` into ``reports`` as collect does, without its other files."""
    results = this.read()
    subjects = subjects_of(results, curves_table(results.cells))
    kept, warnings = read_kept(reports / "published")
    claims = claims_of(results, load_preset("paper"), subjects, kept)
    content = comparison(Kept("This run", results, subjects), kept, warnings, claims)
    for name, value in {"claims.json": claims, "comparison.json": content}.items():
        write_json(reports / name, value)
    return content
