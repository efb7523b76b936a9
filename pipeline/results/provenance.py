"""Where the results come from: parameters, data, machines and commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from pipeline.core.cell import COMMANDS
from pipeline.core.params import Params
from pipeline.core.record import StageRecord
from pipeline.results.looks import looks
from pipeline.results.reading import MIXTURE, Results
from pipeline.results.statistics import MEAN_INTERVAL, TIME_INTERVAL, round_significant

WITHOUT_EFFECT = {"report", "checkpoint_seconds"}  # no figure depends on these parameters


def provenance_of(results: Results, paper: Params) -> dict[str, Any]:
    """The content of `provenance.json`; ``paper`` contains the parameters that ours are compared with."""
    params = results.params
    ours = plain_values(params, exclude=WITHOUT_EFFECT)
    recipes = looks(params.grid.recipes)
    return {
        "preset": params.preset,
        "intervals": {"mean": MEAN_INTERVAL, "median": TIME_INTERVAL},
        "datasets": {name: dataset.info for name, dataset in results.datasets.items()},
        "recipes": {name: {"label": look.label, "colour": look.colour} for name, look in recipes.items()},
        "seeds": list(params.grid.seeds),
        "separate_noise": all(cell.evaluation.separate_noise for cell in results.cells),
        "cells": [cell.model_dump(exclude={"epochs", "planned_epochs", "run"}) for cell in results.statuses],
        "stages": stages(results),
        "other_cores": other_cores(results.records),
        "environments": environments(results),
        "commands": commands(results),
        "params": ours,
        "differences": differences(ours, plain_values(paper, exclude=WITHOUT_EFFECT)),
    }


def plain_values(params: Params, exclude: Set[str] = frozenset()) -> dict[str, Any]:
    """The parameters, but for some sections, as plain values without the machine's paths."""
    values = params.model_dump(mode="json", exclude=set(exclude))
    for source in values["data"].values():
        source |= {key: "<path>" for key in ("folder", "path") if source.get(key)}
    return values


def differences(ours: Mapping[str, Any], paper: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """The keys whose values differ, with both values; None where a side lacks the key."""
    rows = []
    for key in sorted({*ours, *paper}):
        our_value, paper_value = ours.get(key), paper.get(key)
        if isinstance(our_value, Mapping) and isinstance(paper_value, Mapping):
            rows += differences(our_value, paper_value, f"{prefix}{key}.")
        elif our_value != paper_value:
            values = {"ours": our_value, "paper": paper_value}
            shown = {side: "(a section)" if isinstance(value, Mapping) else value for side, value in values.items()}
            rows.append({"key": f"{prefix}{key}", **shown})
    return rows


def stages(results: Results) -> list[dict[str, Any]]:
    """The number of cells of each stage, their total seconds, None unless all have them, and `other_cores`."""
    seconds: dict[str, list[float | None]] = {"mixture": [results.mixture.seconds]}
    cores = other_cores(results.records)
    for stage, record in results.records:
        seconds.setdefault(stage, []).append(getattr(record, "seconds", None))
    return [
        {
            "stage": stage,
            "cells": len(lines),
            "seconds": _sum_of_all(seconds.get(stage, [])),
            "other_cores": cores.get(stage),
        }
        for stage, lines in commands(results).items()
    ]


def _sum_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round_significant(sum(known)) if known and len(known) == len(values) else None


def other_cores(records: Iterable[tuple[str, StageRecord]]) -> dict[str, float]:
    """How many cores other processes kept busy on average, at most, during a cell of each stage that recorded it."""
    most: dict[str, float] = {}
    for stage, record in records:
        if record.other_cores is not None:
            most[stage] = max(round_significant(record.other_cores), most.get(stage, 0.0))
    return most


def environments(results: Results) -> list[dict[str, Any]]:
    """Each distinct environment once, with its cells and the times of the first and the last of them."""
    ran = [(stage, str(record.key), record.environment) for stage, record in results.records]
    groups: dict[str, dict[str, Any]] = {}
    for stage, name, environment in [*ran, ("mixture", "mixture", results.mixture.environment)]:
        time, description = environment.time, environment.model_dump(exclude={"time"})
        new = {"environment": description, "cells": {}, "first": time, "last": time}
        group = groups.setdefault(repr(description), new)
        group["cells"].setdefault(stage, []).append(name)
        group |= {"first": min(group["first"], time), "last": max(group["last"], time)}
    return list(groups.values())


def commands(results: Results) -> dict[str, list[str]]:
    """The exact commands of every cell, by stage."""
    lines = {"data": [f"python -m pipeline.data --dataset {name} --out data/{name}" for name in results.datasets]}
    lines |= {stage: [] for stage in COMMANDS}
    for stage, record in results.records:
        lines[stage].append(record.key.command(stage))
    last = {"collect": ["python -m pipeline.collect"], "report": ["python -m pipeline.report"]}
    return {**lines, "mixture": [MIXTURE], **last}
