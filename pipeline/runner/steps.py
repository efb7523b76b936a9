"""The steps in `dvc.yaml`, read without DVC, and a record of those that are done with their present inputs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.files import read_json, sha256, write_json
from pipeline.core.params import Section, read_yaml

GRAPH, NOTES = Path("dvc.yaml"), Path("runs/done")


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
    def note(self) -> Path:
        """The file that records whether the step is done."""
        cell = "-".join(map(str, self.item.values()))
        return NOTES / self.stage / f"{cell or self.stage}.json"

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


def _merged(values: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``updates``; sections are merged recursively."""
    sections = {key: _merged(values[key], updates[key]) for key in updates if isinstance(values.get(key), Mapping)}
    return {**values, **updates, **sections}


def _cells(name: str, stage: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Step]:
    if "foreach" in stage:
        for key, fields in _value(params, stage["foreach"].strip("${}")).items():
            yield _step(name, stage["do"], {"dataset": key}, fields)
        return
    matrix = {item: _value(params, text.strip("${}")) for item, text in stage.get("matrix", {}).items()}
    for values in product(*matrix.values()):
        item = dict(zip(matrix, values, strict=True))
        yield _step(name, stage, item, item)


def _value(params: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key; raises `KeyError` if it is missing."""
    return reduce(getitem, dotted.split("."), params)


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


class Note(Section):
    """The digests of a step's inputs (files, parameters, command), and of the files that it wrote.

    ``outs`` is null from the beginning of the step until it succeeds. A ``partial`` step has written the results of
    some classes.
    """

    inputs: dict[str, str]
    outs: dict[str, str] | None
    partial: bool = False


class Ledger:
    """Says which steps are done with the present inputs.

    A step is done if its note has exactly the present command, parameters, code and data, and every file that it wrote
    still has its SHA-256. Only weights may be missing, once they have been evaluated, so that results can be moved to
    another machine without them.

    Args:
        steps: All steps.
        params: The parameters as plain values.
    """

    def __init__(self, steps: Sequence[Step], params: Mapping[str, Any]) -> None:
        self._params = params
        self._makers = {out: step for step in steps for out in step.outs}
        self._evaluations = {step.key: step for step in steps if step.stage == "evaluate"}

    def is_done(self, step: Step) -> bool:
        """Whether a step's files exist and were made from the present inputs."""
        note = self._current(step)
        if note is None or note.partial or not self.results(step):
            return False
        is_missing = any(not Path(file).exists() for file in note.outs or {})
        # Only weights can be missing here.
        return not is_missing or self.is_done(self._evaluations[step.key])

    def is_begun(self, step: Step) -> bool:
        """Whether a step was begun with the present inputs and has not succeeded."""
        note = self._current(step)
        return note is not None and (note.outs is None or note.partial)

    def results(self, step: Step) -> list[Path]:
        """The note and the files of a finished or partial step, without weights; none if one was changed or removed."""
        outs = self._outs(step)
        if outs is None:
            return []
        digests = {file: digest_of(Path(file)) for file in outs}
        if any(digest != outs[file] and (digest or "/flows/" not in file) for file, digest in digests.items()):
            return []
        return [step.note, *(Path(file) for file in outs if "/flows/" not in file)]

    def begin(self, step: Step) -> None:
        """Record that a step has begun; until it succeeds, its partial results count."""
        note = self._current(step)
        if note is None or not note.partial:
            write_json(step.note, {"inputs": self._inputs(step), "outs": None})

    def finish(self, step: Step, *, partial: bool = False) -> None:
        """Record that a step has succeeded; its inputs are those recorded when it began."""
        outs = {file.as_posix(): digest_of(file) for out in step.outs for file in files_under(Path(out))}
        write_json(step.note, {**read_json(step.note), "outs": outs, "partial": partial})

    def _current(self, step: Step) -> Note | None:
        """The note of a step, if its inputs are the present ones; else None."""
        try:
            note = Note.model_validate(read_json(step.note)) if step.note.is_file() else None
        except ValidationError:
            return None
        return note if note and note.inputs == self._inputs(step) else None

    def _outs(self, step: Step) -> dict[str, str] | None:
        """The digests of a finished step's files; None if it has not succeeded with the present inputs."""
        return note.outs if (note := self._current(step)) else None

    def _inputs(self, step: Step) -> dict[str, str] | None:
        """A digest of each input of a step; None if a step that it needs has not succeeded."""
        inputs = {"command": sha256(" ".join(step.command).encode())}
        for key in step.params:
            inputs[f"params {key}"] = sha256(json.dumps(_value(self._params, key), sort_keys=True).encode())
        for dep in step.deps:
            maker = self._makers.get(dep)
            if maker is None or maker.stage == "data":
                inputs[dep] = digest_of(Path(dep))
            elif (outs := self._outs(maker)) is not None:
                inputs[dep] = sha256(json.dumps(outs, sort_keys=True).encode())
            else:
                return None
        return inputs


def files_under(path: Path) -> list[Path]:
    """The file itself, or all files of a folder in order, without Python's caches."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def digest_of(path: Path) -> str:
    """A digest of a file, or of the names and contents of a folder's files; empty if the path does not exist."""
    if path.is_dir():
        names = {file.relative_to(path).as_posix(): digest_of(file) for file in files_under(path)}
        return sha256(json.dumps(names).encode())
    if not path.is_file():
        return ""
    stat = path.stat()
    return _digest(path.absolute(), stat.st_mtime_ns, stat.st_size)


@cache
def _digest(path: Path, _time: int, _size: int) -> str:
    """The SHA-256 of a file, computed again only if its time or its size is another."""
    return sha256(path)
