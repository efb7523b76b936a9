"""The steps that `dvc.yaml` describes, without DVC: what each one runs, what it depends on, and what it writes."""

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
    """One cell of a stage, or the whole of a stage that has no cells; paths are relative to the project.

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
        """Which cell of the grid; only for the stages of train, evaluate and measure."""
        return Key(self.item["dataset"], self.item["recipe"], self.item.get("seed"))

    @property
    def cell(self) -> str:
        """The cell as its files are named; empty for a stage without cells."""
        return "-".join(map(str, self.item.values()))

    def __str__(self) -> str:
        return " ".join([self.stage, *map(str, self.item.values())])


def read_steps(params: Mapping[str, Any], path: Path = GRAPH) -> list[Step]:
    """All steps in the order of the file, which is one in which they can be run.

    Args:
        params: The parameters as plain values; they say which cells there are.
        path: The file, of which only what this project uses is understood: a matrix over lists of the parameters, a
            foreach over one of their sections, the names of items in the other fields, and parameters of its own.

    Raises:
        UserError: If the file is missing or uses something else.
    """
    try:
        graph = read_yaml(path)
        for more in graph.get("vars", []):
            params = _merged(params, more)
        return [step for name, stage in graph["stages"].items() for step in _cells(name, stage, params)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} describes a stage in a way that only DVC understands ({error!r})") from None


def value_of(params: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key; `KeyError` where there is none."""
    value: Any = params
    for name in dotted.split("."):
        value = value[name]
    return value


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Values with more of them, sections within sections."""
    both = {key: _merged(values[key], more[key]) for key in more if isinstance(values.get(key), Mapping)}
    return {**values, **more, **both}


def _cells(name: str, stage: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Step]:
    if "foreach" in stage:
        for key, own in value_of(params, _placeholder(stage["foreach"])).items():
            known = {"key": key, **{f"item.{field}": str(value) for field, value in own.items()}}
            yield _step(name, stage["do"], {"dataset": key}, known)
        return
    matrix = {item: value_of(params, _placeholder(text)) for item, text in stage.get("matrix", {}).items()}
    for values in product(*matrix.values()):
        item = dict(zip(matrix, values, strict=True))
        known = {"key": "-".join(map(str, values)), **{f"item.{key}": str(value) for key, value in item.items()}}
        yield _step(name, stage, item, known)


def _step(name: str, stage: Mapping[str, Any], item: Mapping[str, Any], known: Mapping[str, str]) -> Step:
    """One step of a stage, its placeholders filled with what is ``known``."""
    outs = [path for kind in ("outs", "metrics", "plots") for path in stage.get(kind, [])]

    def fill(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda found: known[found[1]], text)

    return Step(
        stage=name,
        item=item,
        command=tuple(shlex.split(fill(stage["cmd"]))),
        deps=tuple(map(fill, stage["deps"])),
        params=tuple(map(fill, stage.get("params", []))),
        outs=tuple(fill(out if isinstance(out, str) else next(iter(out))) for out in outs),
    )


def _placeholder(text: str) -> str:
    found = re.fullmatch(r"\$\{([\w.]+)\}", text)
    if found is None:
        raise KeyError(text)
    return found[1]
