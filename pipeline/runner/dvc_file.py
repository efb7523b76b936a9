"""Reads the steps in `dvc.yaml` without DVC: the command, the dependencies and the outputs of each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.params import read_yaml

GRAPH = Path("dvc.yaml")


@dataclass(frozen=True)
class Step:
    """One cell of a stage, or a whole stage without cells; paths are relative to the project.

    ``params`` are dotted keys of the parameter file.
    """

    stage: str
    item: Mapping[str, Any]
    command: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def key(self) -> Key:
        """The cell of the grid; only for train, evaluate and measure."""
        return Key(self.item["dataset"], self.item["recipe"], self.item.get("seed"))

    @property
    def cell(self) -> str:
        """The name of the cell in file names; empty for a stage without cells."""
        return "-".join(map(str, self.item.values()))

    def __str__(self) -> str:
        return " ".join([self.stage, *map(str, self.item.values())])


def read_steps(params: Mapping[str, Any], path: Path = GRAPH) -> list[Step]:
    """All steps in the order of the file, in which they can run.

    Args:
        params: The parameters as plain values; they define the cells.
        path: The file. Only the features that this project uses are supported: a matrix over lists of the parameters,
            a foreach over one of their sections, placeholders for the item, and ``vars``.

    Raises:
        UserError: If the file is missing or uses another feature.
    """
    try:
        graph = read_yaml(path)
        for variables in graph.get("vars", []):
            params = _merged(params, variables)
        return [step for name, stage in graph["stages"].items() for step in _cells(name, stage, params)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} describes a stage in a way that only DVC understands ({error!r})") from None


def value_of(params: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key; raises `KeyError` if it is missing."""
    value: Any = params
    for name in dotted.split("."):
        value = value[name]
    return value


def _merged(values: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``updates``; sections are merged recursively."""
    sections = {key: _merged(values[key], updates[key]) for key in updates if isinstance(values.get(key), Mapping)}
    return {**values, **updates, **sections}


def _cells(name: str, stage: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Step]:
    if "foreach" in stage:
        for key, fields in value_of(params, _placeholder(stage["foreach"])).items():
            yield _step(name, stage["do"], {"dataset": key}, fields)
        return
    matrix = {item: value_of(params, _placeholder(text)) for item, text in stage.get("matrix", {}).items()}
    for values in product(*matrix.values()):
        item = dict(zip(matrix, values, strict=True))
        yield _step(name, stage, item, item)


def _step(name: str, stage: Mapping[str, Any], item: Mapping[str, Any], fields: Mapping[str, Any]) -> Step:
    """One step of a stage; ``fields`` has the values of the placeholders ``item.<field>``."""
    outs = [path for kind in ("outs", "metrics", "plots") for path in stage.get(kind, [])]
    known = {"key": "-".join(map(str, item.values())), **{f"item.{field}": str(fields[field]) for field in fields}}

    def fill(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda match: known[match[1]], text)

    return Step(
        stage=name,
        item=item,
        command=tuple(shlex.split(fill(stage["cmd"]))),
        deps=tuple(map(fill, stage["deps"])),
        params=tuple(map(fill, stage.get("params", []))),
        outs=tuple(fill(out if isinstance(out, str) else next(iter(out))) for out in outs),
    )


def _placeholder(text: str) -> str:
    match = re.fullmatch(r"\$\{([\w.]+)\}", text)
    if match is None:
        raise KeyError(text)
    return match[1]
