"""Trainings of a few steps in separate processes, which a test can kill at a chosen point or at any moment."""

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

# The server imports torch once, with the modules that torch imports lazily; its forks start at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["__main__", "pipeline.train", "torch._dynamo"])


@dataclass(frozen=True)
class Fault:
    """A fault at the ``count``-th call of a function in a process, before that call or ``after`` it.

    By default the process gets ``signal``. With ``reached``, an event, it sets the event and waits for ever; with
    ``result``, the call returns that instead.
    """

    function: str
    count: int
    after: bool = False
    signal: int = signal.SIGKILL
    reached: Any = None
    result: Any = None

    def install(self) -> None:
        """Replace the function by a faulty one in this process."""
        owner_name, _, name = self.function.rpartition(".")
        owner = pkgutil.resolve_name(owner_name)
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
    """The longest size, in bytes, of any file of the process; a longer write fails with an error of the system."""

    size: int

    def install(self) -> None:
        """Set the limit in this process."""
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@dataclass
class Cell:
    """A folder with data, parameters and the training of one recipe, with a checkpoint after every step."""

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
        """Write `params.yaml` with the cell's changes of the recipe, and with ``top`` for keys at the top level."""
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
        """Start the training in a process."""
        options = ["--dataset", "mnist", "--recipe", self.recipe, "--seed", str(self.seed), "--out", self.out]
        process = CONTEXT.Process(target=work, args=(self.folder, ["train", *options], self._log(log), faults))
        process.start()
        return process

    def train(self, *faults: Fault | FileLimit) -> int:
        """Train to the end, or until a fault ends it, and return the exit status: negative for a signal."""
        process = self.start(*faults)
        process.join()
        assert process.exitcode is not None
        return int(process.exitcode)

    @property
    def log(self) -> str:
        """The output of the last training."""
        return self._log("log").read_text(encoding="utf-8")

    def _log(self, name: str) -> Path:
        return (self.log_folder or self.folder) / name

    def checkpoints(self) -> list[Path]:
        """The existing folders of checkpoints."""
        return [path for path in (self.folder / ".checkpoints").iterdir() if path.is_dir()]

    def outcome(self) -> dict[str, Any]:
        """The contents of all files that the training wrote, without times."""
        out = self.folder / self.out
        contents: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
        header, *rows = [line.split(",") for line in contents.pop("history.csv").decode().splitlines()]
        clock = header.index("seconds")
        contents["history"] = [header, *([*row[:clock], *row[clock + 1 :]] for row in rows)]
        del contents["run.json"]
        run = read_json(out / "run.json")
        del run["seconds"], run["other_cores"], run["environment"]["time"]
        for model in run["models"].values():
            del model["seconds"]
        return contents | {"run": run}


def work(folder: Path, arguments: list[str], log: Path, faults: tuple[Fault | FileLimit, ...]) -> None:
    """Run one training in a folder, with its output in the file ``log``; the target of a process."""
    import torch
    from tqdm import tqdm

    from pipeline.core.console import exit_with
    from pipeline.train import main

    torch.set_num_threads(1)
    # The default lock of tqdm is shared between processes, and a killed process would leave it locked.
    tqdm.set_lock(RLock())
    os.chdir(folder)
    sys.argv = arguments
    # Redirect descriptors, not Python's streams, so that the log contains the traceback of a crash too.
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
