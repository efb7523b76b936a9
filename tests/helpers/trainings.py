"""Trainings of a few steps in processes of their own, which can be killed at a chosen point or at any moment."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.core.files import read_json, sha256, write_json
from pipeline.presets.merged import preset_values

if os.name != "posix":
    pytest.skip("processes are forked, killed and limited as POSIX systems do", allow_module_level=True)

# A fork of a server that has imported torch, and what torch imports later on, starts at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["__main__", "pipeline.train", "torch._dynamo"])


@dataclass(frozen=True)
class Fault:
    """What befalls a process at the ``count``-th call of a function, before that call or ``after`` it.

    The process gets ``signal``; or says that the call was ``reached`` and waits for ever; or gets ``result``.
    """

    function: str
    count: int
    after: bool = False
    signal: int = signal.SIGKILL
    reached: Any = None
    result: Any = None

    def install(self) -> None:
        """Put the fault in the function's place in this process."""
        place, _, name = self.function.rpartition(".")
        owner = pkgutil.resolve_name(place)
        original, calls = getattr(owner, name), 0

        def faulty(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.count and self.result is not None:
                return self.result
            if calls == self.count and not self.after:
                self._strike()
            outcome = original(*arguments, **options)
            if calls == self.count and self.after:
                self._strike()
            return outcome

        setattr(owner, name, faulty)

    def _strike(self) -> None:
        if self.reached is None:
            os.kill(os.getpid(), self.signal)
        else:
            self.reached.set()
            signal.pause()


@dataclass(frozen=True)
class FileLimit:
    """No file of the process may become longer: what a write past it fails with is an error of the system's."""

    size: int

    def install(self) -> None:
        """Set the limit in this process."""
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@dataclass
class Cell:
    """A folder with data, parameters and the training of one recipe, a checkpoint after every step."""

    folder: Path
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    out: str = "runs/train/mnist"
    seed: int = 0
    log_folder: Path | None = None

    def __post_init__(self) -> None:
        write_halves(self.folder / "data/mnist")
        self.write_params()

    def write_params(self, **top: Any) -> None:
        """Write `params.yaml`, with changes of the recipe's training and of the top."""
        values = preset_values("smoke") | {"checkpoint_seconds": 0} | top
        recipe = values["recipes"][self.recipe]
        training = {"epochs": 1, "batch_size": 48, "validations": 3}
        for name, value in self.changes.items():
            if name in recipe:
                recipe[name] = value
            else:
                training[name] = value
        if recipe["training"]:
            recipe["training"] |= training
        with (self.folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(values, file)

    def start(self, *faults: Fault | FileLimit, log: str = "log") -> Any:
        """Begin the training."""
        options = ["--dataset", "mnist", "--recipe", self.recipe, "--seed", str(self.seed), "--out", self.out]
        process = CONTEXT.Process(target=work, args=(self.folder, ["train", *options], self._log(log), faults))
        process.start()
        return process

    def train(self, *faults: Fault | FileLimit) -> int:
        """Train to the end, or to where a fault ends it; the exit status, negative for a signal."""
        process = self.start(*faults)
        process.join()
        assert process.exitcode is not None
        return int(process.exitcode)

    @property
    def log(self) -> str:
        """What the last training said."""
        return self._log("log").read_text(encoding="utf-8")

    def _log(self, name: str) -> Path:
        return (self.log_folder or self.folder) / name

    def checkpoints(self) -> list[Path]:
        """The folders of checkpoints that are there."""
        return [path for path in (self.folder / ".checkpoints").iterdir() if path.is_dir()]

    def outcome(self) -> dict[str, Any]:
        """All that the training has written, in bytes, but for what a clock has said."""
        out = self.folder / self.out
        found: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
        header, *rows = [line.split(",") for line in found.pop("history.csv").decode().splitlines()]
        clock = header.index("seconds")
        found["history"] = [header, *([*row[:clock], *row[clock + 1 :]] for row in rows)]
        del found["run.json"]
        run = read_json(out / "run.json")
        del run["seconds"], run["environment"]["time"]
        for model in run["models"].values():
            del model["seconds"]
        return found | {"run": run}


def work(folder: Path, arguments: list[str], log: Path, faults: tuple[Fault | FileLimit, ...]) -> None:
    """What a process does: one training in a folder, with all it says in a file."""
    import torch
    from tqdm import tqdm

    from pipeline.core.console import exit_with
    from pipeline.train import main

    torch.set_num_threads(1)
    # Its own lock is one between processes, which a killed one would leave behind.
    tqdm.set_lock(RLock())
    os.chdir(folder)
    sys.argv = arguments
    # Not by redirection within Python: what dies with a traceback must be seen as well.
    descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    for fault in faults:
        fault.install()
    exit_with(main)


def write_halves(folder: Path, seed: int = 0) -> None:
    """A data set called mnist of two classes of 8x8 images: a bright left half, and a bright right half."""
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 400), ("test", 40)):
        labels = np.arange(count, dtype=np.uint8) % 2
        shade = np.where((np.arange(8) < 4) == (labels[:, None, None] == 0), 200, 40) + np.zeros((count, 8, 8))
        arrays[f"{part}_images"] = (shade + random.integers(-30, 30, shade.shape)).astype(np.uint8)
        arrays[f"{part}_labels"] = labels
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    checksums = {f"{name}.npy": sha256(folder / f"{name}.npy") for name in arrays}
    names = {"name": "mnist", "title": "Halves", "licence": "none", "class_names": ["left", "right"], "subset": True}
    write_json(folder / "dataset.json", {**names, "train": 400, "test": 40, "sha256": checksums})
