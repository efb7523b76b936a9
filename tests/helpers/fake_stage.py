"""Plays a stage of the workshop: it logs the call, applies the cell's fault in `faults.json`, and copies results."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

RESULTS = {
    "train": ("train/{}",),
    "evaluate": ("evaluate/{}.json", "samples/{}"),
    "measure": ("measure/{}.json",),
    "mixture": ("mixture.json", "mixture.npy"),
}


def play(stage: str, cell: str, *options: str) -> int:
    """Play one stage of one cell in the present folder; returns its exit status."""
    finishes = "--finished" in options
    if stage != "mixture" and not finishes:
        with Path("log.txt").open("a") as log:
            log.write(f"{stage} {cell}\n")
    fault = None if finishes else json.loads(Path("faults.json").read_text()).get(f"{stage} {cell}")
    if fault == "hang":
        hang()
    if fault is not None:
        return int(fault)
    finished = Path("finished.txt")
    number = int(finished.read_text()) if finishes and finished.exists() else 0
    if finishes and number == 0:
        return 1
    for name in RESULTS[stage]:
        source, target = Path("made", name.format(cell)), Path("runs", name.format(cell))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    if stage == "train":
        weights = Path("runs/train", cell, "flows/all/weights.safetensors")
        weights.parent.mkdir(parents=True)
        weights.write_bytes(cell.encode())
    if number:
        change(Path("runs/train", cell, "run.json"), "models", number)
    if stage == "evaluate":
        run = json.loads(Path("runs/train", cell, "run.json").read_text())
        if run["status"] == "partial":
            change(Path("runs/evaluate", f"{cell}.json"), "per_class", len(run["models"]))
    return 0


def change(path: Path, field: str, number: int) -> None:
    """Leave only the first classes in a record, and call it partial."""
    record: dict[str, Any] = json.loads(path.read_text())
    message = f"{number} of {len(record[field])} classes trained"
    record |= {"status": "partial", "message": message, field: dict([*record[field].items()][:number])}
    if "test" in record:
        record |= dict.fromkeys(("test", "round_trip", "latents", "sample_class_accuracy"))
    path.write_text(json.dumps(record))


def hang() -> NoReturn:
    """Wait for a signal, and then end with its status."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        Path("stopped").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    Path("hanging").touch()
    time.sleep(1000)
    raise AssertionError("nobody stopped it")
