"""What `comparison.json` has of this run and of the published ones: rows of figures and verdicts, a column for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from pipeline.core.record import Environment, StageRecord
from pipeline.results.kept import Kept, Manifest, Origin
from pipeline.results.looks import TIMES, looks
from pipeline.results.metrics import by_recipe, interval_json, timings_of
from pipeline.results.provenance import other_cores
from pipeline.results.statistics import mean_interval, round_significant
from pipeline.results.subjects import Subject

BITS, MEMORY = "bits_per_dim", "memory_training_mib"
TITLES = {f"{name}_ms": title.removesuffix(", per image") for name, title in TIMES.items() if name != "optimizer_step"}
TITLES |= {MEMORY: "memory of training, at the peak"}
# The stages whose figures depend on what else the machine does.
TIMED = ("measure", "train")
JUDGED = ("verdict", "label")
T = TypeVar("T")


def comparison(this: Kept, kept: Sequence[Kept], warnings: Sequence[str], claims: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `comparison.json`; without published runs, it has no rows.

    Args:
        this: This run.
        kept: The published runs.
        warnings: Why others cannot be read.
        claims: The content of `claims.json`.
    """
    runs = [this, *kept] if kept else []
    figures = [by_recipe(run.subjects, _figures) for run in runs]
    judged = [claims["claims"], *(claims["kept"][run.name] for run in kept)] if kept else []
    verdicts = [{claim["id"]: {key: claim[key] for key in ("title", *JUDGED)} for claim in run} for run in judged]
    titled = [(title.capitalize(), _rows(runs, figures, name)) for name, title in TITLES.items()]
    timings = [{"quantity": title, **row} for title, rows in titled for row in rows]
    return {
        "runs": [_head(run) for run in runs],
        "warnings": list(warnings),
        "likelihood": _rows(runs, figures, BITS),
        "timings": [row for row in timings if any(value["found"] for value in row["values"])],
        "verdicts": [
            {"title": claim["title"], "values": [by_id.get(name) for by_id in verdicts]}
            for name, claim in _first(verdicts).items()
        ],
    }


def _rows(runs: Sequence[Kept], figures: Sequence[Mapping[str, Any]], quantity: str) -> list[dict[str, Any]]:
    """A row of a quantity for each data set and recipe that are in the same run, from the figures of each run."""
    titles = _first({name: data.title for name, data in run.results.datasets.items()} for run in runs)
    recipes = looks(list(_first(dict.fromkeys(run.results.params.grid.recipes) for run in runs)))
    return [
        {
            "dataset": titles[dataset],
            "recipe": {"label": recipes[recipe].label, "colour": recipes[recipe].colour},
            "values": [
                {
                    "found": found.get(dataset, {}).get(recipe, {}).get(quantity),
                    "trouble": _trouble(run, dataset, recipe, is_measured=quantity != BITS),
                }
                for run, found in zip(runs, figures, strict=True)
            ],
        }
        for dataset, recipe in product(titles, recipes)
        if any(recipe in run.subjects.get(dataset, {}) for run in runs)
    ]


def _figures(subject: Subject) -> dict[str, Any]:
    """The figures of one recipe: times and memory, and the likelihood as a mean over seeds with its raw values."""
    figures = timings_of(subject)
    if by_seed := subject.metrics.get(BITS):
        raw = {"what": "seed", "values": list(by_seed.values()), "names": [str(seed) for seed in by_seed]}
        figures[BITS] = {**interval_json("mean", mean_interval(list(by_seed.values()))), "raw": raw}
    return figures


def _trouble(run: Kept, dataset: str, recipe: str, *, is_measured: bool) -> list[str]:
    """The status of each unfinished cell that a figure depends on: a measurement, or all others."""
    statuses = run.results.statuses
    cells = [cell for cell in statuses if (cell.recipe, cell.stage == "measure") == (recipe, is_measured)]
    own = [cell for cell in cells if cell.dataset == dataset]
    if is_measured and dataset in run.subjects:  # a measurement on images of another data set may stand for it
        own = own or cells
    return [
        (f"seed {cell.seed}: " if cell.seed is not None else "") + cell.summary
        for cell in own
        if cell.status != "complete"
    ]


def _head(run: Kept) -> dict[str, Any]:
    """What describes a run: its preset, machines, code, data, and what it lacks."""
    results, manifest = run.results, run.manifest
    records, origins = results.records, manifest.runs if manifest else []
    environments = [record.environment for _, record in records]
    commits = {_commit(origin) for origin in origins if origin.commit} or set(map(_commit, environments))
    return {
        "name": run.name,
        "preset": results.params.preset,
        "devices": sorted(set(map(_device, environments))),
        "commits": sorted(commits),
        "subsets": [data.title for data in results.datasets.values() if data.info["subset"]],
        "separate_noise": all(cell.evaluation.separate_noise for cell in results.cells),
        "other_cores": {stage: other_cores(records).get(stage) for stage in TIMED},
        "cells": len(results.statuses),
        "unfinished": [
            cell.model_dump(include={"stage", "dataset", "recipe", "seed", "status", "message"})
            for cell in results.statuses
            if cell.status != "complete"
        ],
        "partial": _classes_of_partial_cells(run),
        "origins": _origins(records, manifest) if manifest else [],
        "different_code": len({origin.code for origin in origins}) > 1,
    }


def _device(environment: Environment) -> str:
    """The device for readers: the GPU, or the processor."""
    return environment.gpu or f"{environment.processor}, {environment.device.upper()}"


def _commit(source: Origin | Environment) -> str:
    """A commit for readers, with a + if there were changes that were not committed."""
    return "unknown commit" if source.commit is None else source.commit[:12] + ("+" if source.dirty else "")


def _classes_of_partial_cells(run: Kept) -> list[dict[str, Any]]:
    """The test bits/dim of each trained class of the partial cells."""
    return [
        {
            **cell.key._asdict(),
            "class": run.results.datasets[cell.key.dataset].class_names[int(label)],
            "bits": round_significant(likelihood.bits_per_dim.mean),
        }
        for cell in run.results.cells
        if cell.status == "partial"
        for label, likelihood in (cell.evaluation.per_class or {}).items()
    ]


def _origins(records: Iterable[tuple[str, StageRecord]], manifest: Manifest) -> list[dict[str, Any]]:
    """Which run, device and commit the cells with results are of: a row each, with the cells by stage."""
    runs = {run.created: run for run in manifest.runs}
    created = {(str(cell.stage), cell.key): cell.run or manifest.created for cell in manifest.cells}
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for stage, record in records:
        run = runs.get(day := created[stage, record.key])
        row = day, _device(record.environment), _commit(run if run and run.commit else record.environment)
        rows.setdefault(row, {}).setdefault(stage, []).append(str(record.key))
    columns = ("created", "device", "commit")
    return [{**dict(zip(columns, row, strict=True)), "cells": cells} for row, cells in sorted(rows.items())]


def _first(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """The first value of each name, in order of first occurrence."""
    merged: dict[str, T] = {}
    for part in parts:
        merged = {**merged, **part, **merged}
    return merged
