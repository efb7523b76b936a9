"""A record of the finished cells: for each, digests of its inputs and of the files that it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.core.files import read_json, sha256, write_json
from pipeline.core.params import Section
from pipeline.runner.dvc_file import Step, value_of

FOLDER = Path("runs/done")


class Note(Section):
    """The digests of a cell's inputs (files, parameters, command), and of the files that it wrote.

    ``outs`` is null from the beginning of the cell until it succeeds.
    """

    inputs: dict[str, str]
    outs: dict[str, str] | None


class Ledger:
    """Says which steps are done with the present inputs.

    A cell is done if its note has exactly the present command, parameters, code and data, and every file that it wrote
    still has its SHA-256. Only weights may be missing, once they have been evaluated, so that results can be moved to
    another machine without them.

    Args:
        steps: All steps.
        params: The parameters as plain values.
        folder: The folder of the notes.
    """

    def __init__(self, steps: Sequence[Step], params: Mapping[str, Any], folder: Path = FOLDER) -> None:
        self._params, self._folder = params, folder
        self._makers = {out: step for step in steps for out in step.outs}
        self._evaluations = {step.key: step for step in steps if step.stage == "evaluate"}
        # Only digests of data are cached: data are large and were just verified by the data stage, but code may change.
        self._data = cache(digest_of)

    def path(self, step: Step) -> Path:
        """The file of a step's note."""
        return self._folder / step.stage / f"{step.cell or step.stage}.json"

    def is_done(self, step: Step) -> bool:
        """Whether a step's files exist and were made from the present inputs."""
        outs = self._outs(step)
        if outs is None:
            return False
        digests = {file: digest_of(Path(file)) for file in outs}
        if any(digest not in ("", outs[file]) for file, digest in digests.items()):
            return False
        missing = [file for file, digest in digests.items() if not digest]
        only_weights = step.stage == "train" and all("/flows/" in file for file in missing)
        return not missing or (only_weights and self.is_done(self._evaluations[step.key]))

    def is_begun(self, step: Step) -> bool:
        """Whether a step was begun with the present inputs and has not succeeded."""
        note = self._current(step)
        return note is not None and note.outs is None

    def results(self, step: Step) -> list[Path]:
        """The files of a finished step, without weights."""
        return [Path(file) for file in self._outs(step) or {} if "/flows/" not in file]

    def begin(self, step: Step) -> None:
        """Record that a step has begun."""
        write_json(self.path(step), {"inputs": self._inputs(step), "outs": None})

    def finish(self, step: Step) -> None:
        """Record that a step has succeeded; its inputs are those recorded when it began."""
        outs = {file.as_posix(): digest_of(file) for out in step.outs for file in files_under(Path(out))}
        write_json(self.path(step), {**read_json(self.path(step)), "outs": outs})

    def _current(self, step: Step) -> Note | None:
        """The note of a step, if its inputs are the present ones; else None."""
        path = self.path(step)
        if not path.is_file():
            return None
        try:
            note = Note.model_validate(read_json(path))
        except ValidationError:
            return None
        return note if note.inputs == self._inputs(step) else None

    def _outs(self, step: Step) -> dict[str, str] | None:
        """The digests of a finished step's files; None if it has not succeeded with the present inputs."""
        note = self._current(step)
        return None if note is None else note.outs

    def _inputs(self, step: Step) -> dict[str, str] | None:
        """A digest of each input of a step; None if a step that it needs has not succeeded."""
        inputs = {"command": sha256(" ".join(step.command).encode())}
        for key in step.params:
            inputs[f"params {key}"] = sha256(json.dumps(value_of(self._params, key), sort_keys=True).encode())
        for dep in step.deps:
            maker = self._makers.get(dep)
            if maker is None:
                inputs[dep] = digest_of(Path(dep))
                continue
            if maker.stage == "data":
                inputs[dep] = self._data(Path(dep))
                continue
            outs = self._outs(maker)
            if outs is None:
                return None
            inputs[dep] = sha256(json.dumps(outs, sort_keys=True).encode())
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
    return sha256(path) if path.is_file() else ""
