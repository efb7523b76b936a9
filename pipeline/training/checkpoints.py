"""Checkpoints of a training: written atomically, used only by the identical training, removed when it succeeds."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pipeline.core.console import StopRequest, UserError, say
from pipeline.core.files import replacing, sha256

FOLDER = Path(".checkpoints")
# The interval between checkpoints, in multiples of the time that writing one takes: their cost stays below 1 %.
INTERVAL_FACTOR = 100


class Checkpoint:
    """The checkpoint of one model, a file that begins with the SHA-256 of the rest.

    Args:
        path: The file; without one, nothing is written or read.
        seconds: The minimum time between two checkpoints; 0 writes one after every step.
        request: The request to stop the training; once it is made, a checkpoint is due.
    """

    def __init__(self, path: Path | None = None, seconds: float = math.inf, request: StopRequest | None = None) -> None:
        self._path, self._seconds, self._request = path, seconds, request or StopRequest()
        self._written, self._interval = time.monotonic(), seconds

    def is_due(self) -> bool:
        """Whether to write a checkpoint now."""
        return self._request.signal is not None or time.monotonic() - self._written >= self._interval

    def read(self) -> dict[str, Any] | None:
        """The last state written, or None.

        Raises:
            UserError: If the file is damaged.
        """
        if self._path is None or not self._path.exists():
            return None
        content = self._path.read_bytes()
        checksum, state = content[:64], content[64:]
        try:
            if checksum != sha256(state).encode():
                raise ValueError("its SHA-256 is another")
            loaded: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
        except (ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{self._path} is damaged; delete it, and this model is trained from its start") from error
        return loaded

    def write(self, state: Mapping[str, Any], progress: str) -> None:
        """Replace the last state, then stop if a signal has asked for it.

        A failed write does not end the training, which may still succeed.

        Args:
            state: Tensors and plain values.
            progress: How far the training has come, for messages.

        Raises:
            StoppedError: If a signal has asked the training to stop.
        """
        begin, outcome = time.monotonic(), "what is done is kept, and the same command goes on from there"
        if self._path is not None:
            try:
                buffer = io.BytesIO()
                torch.save(dict(state), buffer)
                with replacing(self._path, durable=True) as temporary, temporary.open("wb") as file:
                    file.write(sha256(buffer.getbuffer()).encode())
                    file.write(buffer.getbuffer())
            except (OSError, UserError, MemoryError) as error:
                cause = error.__cause__ or error
                reason = getattr(cause, "strerror", None) or cause or "memory does not suffice"
                outcome = f"{self._path} cannot be written: {reason}"
                say(f"{progress}: {outcome}; the training goes on without this checkpoint")
        self._written = time.monotonic()
        self._interval = self._seconds and max(self._seconds, INTERVAL_FACTOR * (self._written - begin))
        self._request.heed(f"{progress}: {outcome}")


@contextmanager
def checkpoints(out: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """The folder for the checkpoints of one training, removed when the block ends well.

    Args:
        out: The output path of the training; one process at a time may train for it.
        identity: Everything that the trained weights depend on, except the code; another identity gets another folder.

    Raises:
        UserError: If another process trains for ``out``, or the folder cannot be made.
    """
    folder, path = checkpoint_folder(out, identity), _project_path(out)
    # The lock is for the output path, since trainings with different parameters must not write it at once either.
    lock = FileLock(FOLDER / f"{sha256(os.fsencode(path))[:32]}.lock", timeout=0)
    try:
        FOLDER.mkdir(exist_ok=True)
        lock.acquire()
        folder.mkdir(exist_ok=True)
    except Timeout:
        raise UserError(
            f"another process is training {out} now; wait for its end, or end it first: pgrep -af pipeline.train"
        ) from None
    except OSError as error:
        lock.release()
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def checkpoint_folder(out: Path, identity: Mapping[str, Any]) -> Path:
    """The folder of a training's checkpoints; see `checkpoints`."""
    identity = {**identity, "out": str(_project_path(out)), "torch": torch.__version__, "code": code()}
    return FOLDER / sha256(json.dumps(identity, sort_keys=True).encode())[:32]


def _project_path(out: Path) -> Path:
    """An output path, relative to the project if it is inside, so that the project can be moved."""
    path = out.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def code() -> dict[str, str]:
    """The SHA-256 of each module of `lunet` and `pipeline` that this process has imported, by name."""
    specs = [module.__spec__ for module in [*sys.modules.values()] if getattr(module, "__spec__", None)]
    # Only the spec of a module that runs as __main__ contains its real name.
    return {
        spec.name: sha256(Path(spec.origin))
        for spec in specs
        if spec is not None and spec.origin and spec.name.partition(".")[0] in ("lunet", "pipeline")
    }


def random_state(streams: Mapping[str, torch.Generator]) -> dict[str, torch.Tensor]:
    """The states of generators by name, and of torch's global ones, from which a flow with dropout draws."""
    state = {name: stream.get_state() for name, stream in streams.items()} | {"torch": torch.get_rng_state()}
    return state | ({"torch.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def restore_random_state(streams: Mapping[str, torch.Generator], state: Mapping[str, torch.Tensor]) -> None:
    """Restore the states that `random_state` returned."""
    for name, stream in streams.items():
        stream.set_state(state[name])
    torch.set_rng_state(state["torch"])
    if "torch.cuda" in state:
        torch.cuda.set_rng_state(state["torch.cuda"])
