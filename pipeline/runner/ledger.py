"""What has been done already: for each cell a note of all that went into it and of the files that came out."""

from __future__ import annotations

import hashlib
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
    """What a cell was made from, a digest for each file, parameter and command; and the digests of its files.

    ``outs`` is null while the cell has been begun and has not ended well.
    """

    inputs: dict[str, str]
    outs: dict[str, str] | None


class Ledger:
    """Says which steps are done, and never takes for done what was made from anything else than is there now.

    A cell is done if its note names exactly the present command, parameters, code and data, and every file that it
    wrote has the SHA-256 it had then. Weights alone may be gone, once they have been evaluated, so that results can be
    carried to another machine without them.

    Args:
        steps: All steps.
        params: The parameters as plain values.
        folder: Where the notes are kept.
    """

    def __init__(self, steps: Sequence[Step], params: Mapping[str, Any], folder: Path = FOLDER) -> None:
        self._params, self._folder = params, folder
        self._makers = {out: step for step in steps for out in step.outs}
        self._evaluations = {step.key: step for step in steps if step.stage == "evaluate"}
        # Code may change meanwhile; data are large, and the data stage has just verified them.
        self._data = cache(digest_of)

    def path(self, step: Step) -> Path:
        """The file of a step's note."""
        return self._folder / step.stage / f"{step.cell or step.stage}.json"

    def is_done(self, step: Step) -> bool:
        """Whether a step's files are there and were made from what is there now."""
        note = self._current(step)
        if note is None or note.outs is None:
            return False
        gone = [file for file in note.outs if not Path(file).exists()]
        kept = [file for file in note.outs if file not in gone]
        if any(digest_of(Path(file)) != note.outs[file] for file in kept):
            return False
        forgiven = step.stage == "train" and all("/flows/" in file for file in gone)
        return not gone or (forgiven and self.is_done(self._evaluations[step.key]))

    def is_begun(self, step: Step) -> bool:
        """Whether a step was begun, with what is there now, and has not ended well."""
        note = self._current(step)
        return note is not None and note.outs is None

    def results(self, step: Step) -> list[Path]:
        """The files of a step that is done, without weights."""
        note = self._current(step)
        return [Path(file) for file in (note.outs or {} if note else {}) if "/flows/" not in file]

    def begin(self, step: Step) -> None:
        """Note that a step is begun."""
        write_json(self.path(step), {"inputs": self._inputs(step), "outs": None})

    def finish(self, step: Step) -> None:
        """Note that a step has ended well; its inputs are those of its beginning."""
        outs = {file.as_posix(): digest_of(file) for out in step.outs for file in files_under(Path(out))}
        write_json(self.path(step), {**read_json(self.path(step)), "outs": outs})

    def _current(self, step: Step) -> Note | None:
        """The note of a step, if there is one that is about what is there now."""
        path = self.path(step)
        if not path.is_file():
            return None
        try:
            note = Note.model_validate(read_json(path))
        except ValidationError:
            return None
        return note if note.inputs == self._inputs(step) else None

    def _inputs(self, step: Step) -> dict[str, str] | None:
        """A digest of everything that a step is made from; None while a step that it needs has not ended well."""
        inputs = {"command": _sha256(" ".join(step.command).encode())}
        for key in step.params:
            inputs[f"params {key}"] = _sha256(json.dumps(value_of(self._params, key), sort_keys=True).encode())
        for dep in step.deps:
            maker = self._makers.get(dep)
            if maker is None:
                inputs[dep] = digest_of(Path(dep))
                continue
            if maker.stage == "data":
                inputs[dep] = self._data(Path(dep))
                continue
            made = self._current(maker)
            if made is None or made.outs is None:
                return None
            inputs[dep] = _sha256(json.dumps(made.outs, sort_keys=True).encode())
        return inputs


def files_under(path: Path) -> list[Path]:
    """The file itself, or all files of a folder in order, without what Python leaves behind."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def digest_of(path: Path) -> str:
    """A digest of a file, or of the names and the contents of a folder's files; empty where nothing is."""
    if path.is_dir():
        names = {file.relative_to(path).as_posix(): digest_of(file) for file in files_under(path)}
        return _sha256(json.dumps(names).encode())
    return sha256(path) if path.is_file() else ""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
